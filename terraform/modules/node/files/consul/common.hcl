# The same on every machine. What differs from machine to machine is in
# node.json beside it: its name, addresses, gossip key and tokens.
datacenter              = "dc1"
data_dir                = "/var/lib/consul"
client_addr             = "127.0.0.1"
log_level               = "INFO"
disable_update_check    = true
leave_on_terminate      = false
skip_leave_on_interrupt = true
rejoin_after_leave      = true
# Machines start together: whoever is first tries again soon.
retry_interval = "2s"

# No port without TLS.
ports {
  http     = -1
  https    = 8501
  grpc     = -1
  grpc_tls = 8503
  dns      = -1
  serf_lan = 8301
  serf_wan = -1
  server   = 8300
}

tls {
  defaults {
    ca_file         = "/etc/marquee/tls/ca.pem"
    cert_file       = "/etc/marquee/tls/node.pem"
    key_file        = "/etc/marquee/tls/node-key.pem"
    verify_outgoing = true
    tls_min_version = "TLSv1_2"
  }

  # Agents show each other certificates, and a server's must say that it is one.
  internal_rpc {
    verify_incoming        = true
    verify_server_hostname = true
  }

  # Callers of the API show a token instead.
  https {
    verify_incoming = false
  }

  grpc {
    verify_incoming = false
  }
}

acl {
  enabled        = true
  default_policy = "deny"
  # With no server to ask, what was decided last holds.
  down_policy = "extend-cache"
}

connect {
  enabled = true
}

# All jobs of a machine come from one address, and each watch of a service is a
# connection: the default of 200 an address ends at about 20 processes.
limits {
  http_max_conns_per_client = 2000
  rpc_max_conns_per_client  = 1000
}

telemetry {
  prometheus_retention_time = "60s"
  disable_hostname          = true
}
