# Servers alone.
server = true

addresses {
  # The operator calls it from outside; the firewall says who that may be.
  https = "0.0.0.0"
}

ui_config {
  enabled = true
}

# A server that is gone is taken out of the quorum when another has come.
autopilot {
  cleanup_dead_servers      = true
  last_contact_threshold    = "1s"
  server_stabilization_time = "10s"
}
