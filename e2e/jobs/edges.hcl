# The edges that the e2e suite adds to nomad-jobs/edges.hcl: for its echo service,
# for who sells air time, and for who listens to events.
service "echo" {
  protocol = "grpc"
}

edge "gateway" "echo" {}
edge "echo" "account" {}

edge "order" "device" {}

edge "listener" "nats" {}
