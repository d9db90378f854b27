module github.com/qaexchange/notification/clients/python/testdata/gateway

go 1.26.0

require (
	github.com/qaexchange/notification v0.1.0
	github.com/qaexchange/notification/wsgateway v0.1.0
)

require (
	github.com/coder/websocket v1.8.15 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/puzpuzpuz/xsync/v3 v3.5.1 // indirect
)

replace (
	github.com/qaexchange/notification => ../../../..
	github.com/qaexchange/notification/wsgateway => ../../../../wsgateway
)
