package main

// What go generate runs is to be had as Debian's protobuf-compiler (3.21) and
// flatbuffers-compiler (2.0); the two plug-ins that it installs must be in PATH.

//go:generate go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//go:generate go install github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto@v0.6.0
//go:generate protoc -I pb --go_out=paths=source_relative:pb --go-vtproto_out=paths=source_relative:pb --go-vtproto_opt=features=marshal+unmarshal+unmarshal_unsafe+size notification.proto
//go:generate flatc --go --gen-onefile --go-namespace fb -o fb fb/notification.fbs
//go:generate gofmt -w fb/notification_generated.go
//go:generate go run github.com/tinylib/msgp@v1.6.5 -file mp/mp.go -o mp/mp_gen.go -io=false -tests=false
