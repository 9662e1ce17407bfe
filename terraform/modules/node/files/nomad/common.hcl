# The same on every machine. What differs from machine to machine is in
# node.json beside it: its name, addresses, gossip key, token and metadata.
region               = "global"
datacenter           = "dc1"
data_dir             = "/var/lib/nomad"
log_level            = "INFO"
disable_update_check = true
leave_on_interrupt   = false
leave_on_terminate   = false

ports {
  http = 4646
  rpc  = 4647
  serf = 4648
}

tls {
  http                   = true
  rpc                    = true
  ca_file                = "/etc/marquee/tls/ca.pem"
  cert_file              = "/etc/marquee/tls/node.pem"
  key_file               = "/etc/marquee/tls/node-key.pem"
  verify_server_hostname = true
  # Callers of the API show a token instead of a certificate.
  verify_https_client = false
}

acl {
  enabled = true
}

consul {
  address      = "127.0.0.1:8501"
  ssl          = true
  ca_file      = "/etc/marquee/tls/ca.pem"
  grpc_address = "127.0.0.1:8503"
  grpc_ca_file = "/etc/marquee/tls/ca.pem"

  # The servers' addresses are known: they are not looked for in Consul.
  server_auto_join = false
  client_auto_join = false

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }

  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}

limits {
  http_max_conns_per_client = 1000
  rpc_max_conns_per_client  = 1000
}

telemetry {
  prometheus_metrics         = true
  publish_allocation_metrics = true
  publish_node_metrics       = true
  disable_hostname           = true
}
