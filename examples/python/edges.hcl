# The example's edges. To keep it, copy this to nomad-jobs/edges.hcl: what is
# there is applied by `marquee up`.

# The proxy copies bytes and does not look at requests, so that an edge lets a
# caller in or keeps it out as a whole: "tcp", though gRPC is what is in it.
service "greeting" {
  protocol = "tcp"
}

edge "gateway" "greeting" {}
