// Module protoc-gen-grpc-gateway pins the generator of the bench's yardstick.
module github.com/marquee-ads/marquee/tools/protoc-gen-grpc-gateway

go 1.26.0

tool github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway

require (
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.30.0
	golang.org/x/exp v0.0.0-20260820142414-ca536658362e
	google.golang.org/genproto/googleapis/api v0.0.0-20260819154853-08b0e4226688
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/text v0.40.0 // indirect
	google.golang.org/grpc v1.83.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
