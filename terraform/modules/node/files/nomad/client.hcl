# Clients alone.
client {
  enabled          = true
  min_dynamic_port = 20000
  max_dynamic_port = 31999
  gc_interval      = "1m"
  gc_max_allocs    = 50
  # A database may take a minute to write what it holds; Nomad's own most is 30 s.
  max_kill_timeout = "90s"

  # What tasks of the exec driver see of the machine. Every task gets a copy: our
  # programs are static and need no library.
  chroot_env {
    "/etc/group"              = "/etc/group"
    "/etc/hosts"              = "/etc/hosts"
    "/etc/marquee/tls/ca.pem" = "/etc/marquee/tls/ca.pem"
    "/etc/nsswitch.conf"      = "/etc/nsswitch.conf"
    "/etc/passwd"             = "/etc/passwd"
    "/etc/resolv.conf"        = "/etc/resolv.conf"
  }

  # For ports that nobody else may reach.
  host_network "loopback" {
    cidr = "127.0.0.0/8"
  }

  options {
    # Asking a cloud that is not there takes seconds.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist"     = "exec,docker"
  }
}
