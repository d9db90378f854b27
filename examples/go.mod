module github.com/qaexchange/notification/examples

go 1.25

require github.com/qaexchange/notification v0.0.0

require (
	github.com/google/uuid v1.6.0 // indirect
	github.com/puzpuzpuz/xsync/v3 v3.5.1 // indirect
)

replace github.com/qaexchange/notification => ../
