# The edges of the mesh: who may call whom. Everything that is not drawn here is
# denied. Intentions, the protocol Consul is told for each service, and the tests
# that try every identity against every service all come from this file; it is
# read by platform/edges and applied by `marquee up`.

# service names what can be called and what it speaks: "grpc" or "tcp".
service "account" {
  protocol = "grpc"
}

service "account-db" {
  protocol = "tcp"
}

# edge "caller" "callee".
edge "gateway" "account" {}

edge "account" "account-db" {}

service "device" {
  protocol = "grpc"
}

service "device-db" {
  protocol = "tcp"
}

edge "gateway" "device" {}

edge "device" "account" {}

edge "device" "device-db" {}

service "nats" {
  protocol = "tcp"
}

edge "device" "nats" {}

# Its servers, where there are several.
edge "nats" "nats" {}

service "order" {
  protocol = "grpc"
}

service "order-db" {
  protocol = "tcp"
}

edge "gateway" "order" {}

edge "order" "account" {}

edge "order" "device" {}

edge "order" "order-db" {}

edge "order" "nats" {}
