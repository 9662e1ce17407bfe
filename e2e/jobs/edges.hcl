# The edges that the e2e suite adds to nomad-jobs/edges.hcl: for its echo service, and
# for who listens to events.
service "echo" {
  protocol = "grpc"
}

edge "gateway" "echo" {}
edge "echo" "account" {}

edge "listener" "nats" {}
