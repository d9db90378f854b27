module github.com/qaexchange/notification/examples

go 1.26.0

require (
	github.com/chromedp/cdproto v0.159.0
	github.com/chromedp/chromedp v0.23.0
	github.com/coder/websocket v1.8.15
	github.com/prometheus/client_golang v1.25.0
	github.com/qaexchange/notification v0.1.0
	github.com/qaexchange/notification/clients/go v0.1.0
	github.com/qaexchange/notification/clients/typescript v0.1.0
	github.com/qaexchange/notification/natslog v0.1.0
	github.com/qaexchange/notification/natslog/embedded v0.1.0
	github.com/qaexchange/notification/promstats v0.1.0
	github.com/qaexchange/notification/promstats/natslogstats v0.1.0
	github.com/qaexchange/notification/wsgateway v0.1.0
	github.com/stretchr/testify v1.12.1
	golang.org/x/time v0.16.0
)

require (
	github.com/antithesishq/antithesis-sdk-go v0.8.0-default-no-op // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/minio/highwayhash v1.0.4 // indirect
	github.com/nats-io/jwt/v2 v2.8.2 // indirect
	github.com/nats-io/nats-server/v2 v2.15.2 // indirect
	github.com/nats-io/nats.go v1.55.0 // indirect
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/crypto v0.58.0 // indirect
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/go-json-experiment/json v0.0.0-20260213210345-44df1a37e875 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.1 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/puzpuzpuz/xsync/v3 v3.5.1 // indirect
	github.com/qaexchange/notification/ssegateway v0.1.0
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace (
	github.com/qaexchange/notification => ../
	github.com/qaexchange/notification/clients/go => ../clients/go
	github.com/qaexchange/notification/clients/typescript => ../clients/typescript
	github.com/qaexchange/notification/natslog => ../natslog
	github.com/qaexchange/notification/natslog/embedded => ../natslog/embedded
	github.com/qaexchange/notification/promstats => ../promstats
	github.com/qaexchange/notification/promstats/natslogstats => ../promstats/natslogstats
	github.com/qaexchange/notification/ssegateway => ../ssegateway
	github.com/qaexchange/notification/wsgateway => ../wsgateway
)
