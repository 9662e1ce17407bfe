# The edges that the e2e suite adds to nomad-jobs/edges.hcl for its echo service.
service "echo" {
  protocol = "grpc"
}

edge "gateway" "echo" {}
edge "echo" "account" {}
