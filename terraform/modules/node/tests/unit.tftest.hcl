# What the module makes of good input. `terraform test` in this folder.
variables {
  node    = { name = "server-2", role = "server", address = "10.77.0.12", interface = "eth0" }
  servers = ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
  secrets = {
    ca                = "the CA"
    certificate       = "the certificate\n"
    key               = "the key\n"
    consul_gossip     = "consul's gossip key"
    nomad_gossip      = "nomad's gossip key"
    consul_agent      = "agent's token"
    consul_nomad      = "nomad's token"
    consul_management = "management token"
  }
  cluster_addresses = ["10.77.0.2-10.77.0.254"]
  operator_networks = ["10.77.0.1/32", "192.0.2.0/24"]
  ssh_key           = "ssh-ed25519 AAAAC3Nz operator\n"
}

run "server" {
  command = plan

  assert {
    condition = nonsensitive(jsondecode(output.files["/etc/consul.d/node.json"].content) == {
      node_name        = "server-2", bind_addr = "10.77.0.12", retry_join = ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
      bootstrap_expect = 3, encrypt = "consul's gossip key"
      acl              = { tokens = { agent = "agent's token", initial_management = "management token" } }
    })
    error_message = "Consul's node.json of a server is ${nonsensitive(output.files["/etc/consul.d/node.json"].content)}"
  }
  assert {
    condition = nonsensitive(jsondecode(output.files["/etc/nomad.d/node.json"].content) == {
      name      = "server-2", bind_addr = "10.77.0.12"
      advertise = { http = "10.77.0.12", rpc = "10.77.0.12", serf = "10.77.0.12" }
      consul    = { token = "nomad's token" }
      server    = { bootstrap_expect = 3, encrypt = "nomad's gossip key", server_join = { retry_join = ["10.77.0.11", "10.77.0.12", "10.77.0.13"] } }
    })
    error_message = "Nomad's node.json of a server is ${nonsensitive(output.files["/etc/nomad.d/node.json"].content)}"
  }
  assert {
    condition     = nonsensitive(jsondecode(output.files["/etc/marquee/artifactd.json"].content) == { role = "server" })
    error_message = "artifactd.json of a server is ${nonsensitive(output.files["/etc/marquee/artifactd.json"].content)}"
  }
  assert {
    condition     = nonsensitive(output.files["/etc/marquee/firewall.nft"].content) == "add element inet marquee cluster { 10.77.0.2-10.77.0.254 }\nadd element inet marquee operator_tcp { 4646, 4700, 8501 }\nadd element inet marquee operators { 10.77.0.1/32, 192.0.2.0/24 }\nadd rule inet marquee input ip saddr @cluster udp dport 123 accept\n"
    error_message = "firewall.nft of a server is ${nonsensitive(output.files["/etc/marquee/firewall.nft"].content)}"
  }
  assert {
    condition = alltrue([for f in ["/etc/consul.d/common.hcl", "/etc/consul.d/server.hcl", "/etc/consul.d/tuned.hcl", "/etc/nomad.d/common.hcl", "/etc/nomad.d/server.hcl", "/etc/nomad.d/tuned.hcl"] :
    nonsensitive(output.files[f].content) == file("./files/${split(".", split("/", f)[2])[0]}/${basename(f)}")])
    error_message = "A server's role files are not those of files/."
  }
  assert {
    condition     = !anytrue([for f in ["/etc/consul.d/client.hcl", "/etc/nomad.d/client.hcl", "/etc/nomad.d/data.hcl", "/usr/local/sbin/marquee-wait"] : contains(keys(nonsensitive(output.files)), f)])
    error_message = "A server has a file of clients."
  }
  assert {
    condition = alltrue([
      nonsensitive(output.files["/etc/ssh/authorized_keys.d/root"].content) == "ssh-ed25519 AAAAC3Nz operator\n",
      nonsensitive(strcontains(output.files["/etc/ssh/sshd_config.d/marquee.conf"].content, "\nAuthorizedKeysFile /etc/ssh/authorized_keys.d/%u\n")),
    ])
    error_message = "Somebody else than the operators may log in, or they may not."
  }
  assert {
    condition     = nonsensitive(strcontains(output.files["/etc/systemd/system/nomad.service.d/role.conf"].content, "User=nomad"))
    error_message = "A server's Nomad runs as root."
  }
  assert {
    condition = nonsensitive(output.files["/etc/chrony/chrony.conf"].content) == <<-EOT
      # Servers keep time with each other and with whom they are told to ask; all
      # other machines ask the servers.
      peer 10.77.0.11 minpoll 4 maxpoll 6
      peer 10.77.0.13 minpoll 4 maxpoll 6
      local stratum 10 orphan
      allow
      driftfile /var/lib/chrony/chrony.drift
      makestep 1 3
      rtcsync
      cmdport 0
      leapsectz right/UTC
    EOT

    error_message = "chrony.conf of a server is ${nonsensitive(output.files["/etc/chrony/chrony.conf"].content)}"
  }
}

run "client" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.101", placements = ["edge", "data"], node_pool = "edge", interface = "eth0" }
    secrets = {
      ca            = "the CA", certificate = "the certificate", key = "the key"
      consul_gossip = "consul's gossip key", nomad_gossip = "nomad's gossip key"
      consul_agent  = "agent's token", consul_nomad = "nomad's token"
    }
    tuned          = false
    data_jobs      = ["account-db", "order-db"]
    static_network = { prefix = 24, gateway = "10.77.0.1", name_servers = ["10.77.0.1"] }
  }

  assert {
    condition = nonsensitive(jsondecode(output.files["/etc/consul.d/node.json"].content) == {
      node_name = "client-1", bind_addr = "10.77.0.101", retry_join = ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
      encrypt   = "consul's gossip key", acl = { tokens = { agent = "agent's token" } }
    })
    error_message = "Consul's node.json of a client is ${nonsensitive(output.files["/etc/consul.d/node.json"].content)}"
  }
  assert {
    condition = nonsensitive(jsondecode(output.files["/etc/nomad.d/node.json"].content) == {
      name      = "client-1", bind_addr = "10.77.0.101"
      advertise = { http = "10.77.0.101", rpc = "10.77.0.101", serf = "10.77.0.101" }
      consul    = { token = "nomad's token" }
      client = {
        servers           = ["10.77.0.11:4647", "10.77.0.12:4647", "10.77.0.13:4647"]
        node_pool         = "edge"
        network_interface = "eth0"
        cni_path          = "/usr/lib/cni"
        meta              = { marquee_data = "true", marquee_edge = "true" }
        host_network      = { private = { cidr = "10.77.0.101/32" }, public = { cidr = "10.77.0.101/32" } }
        host_volume = {
          account-db-data = { path = "/var/lib/marquee/volumes/account-db" }
          order-db-data   = { path = "/var/lib/marquee/volumes/order-db" }
        }
      }
    })
    error_message = "Nomad's node.json of a client is ${nonsensitive(output.files["/etc/nomad.d/node.json"].content)}"
  }
  assert {
    condition     = nonsensitive(strcontains(output.files["/etc/tmpfiles.d/marquee.conf"].content, "d /var/lib/marquee/volumes/account-db 0700 nobody nogroup -\nd /var/lib/marquee/volumes/order-db 0700 nobody nogroup -\n"))
    error_message = "A data machine's folders are ${nonsensitive(output.files["/etc/tmpfiles.d/marquee.conf"].content)}"
  }
  assert {
    condition     = nonsensitive(jsondecode(output.files["/etc/marquee/artifactd.json"].content) == { role = "client", servers = ["10.77.0.11:4700", "10.77.0.12:4700", "10.77.0.13:4700"] })
    error_message = "artifactd.json of a client is ${nonsensitive(output.files["/etc/marquee/artifactd.json"].content)}"
  }
  assert {
    condition     = nonsensitive(output.files["/etc/marquee/firewall.nft"].content) == "add element inet marquee cluster { 10.77.0.2-10.77.0.254 }\nadd element inet marquee operators { 10.77.0.1/32, 192.0.2.0/24 }\nadd element inet marquee public_tcp { 1883, 8080, 8081 }\nadd chain inet marquee output { type filter hook output priority filter; policy accept; }\nadd rule inet marquee output ip daddr 169.254.169.254 meta skuid != 0 reject\nadd chain inet marquee forward { type filter hook forward priority filter; policy accept; }\nadd rule inet marquee forward ip daddr 169.254.169.254 reject\n"
    error_message = "firewall.nft of an edge machine is ${nonsensitive(output.files["/etc/marquee/firewall.nft"].content)}"
  }
  assert {
    condition = alltrue([for f in ["/etc/nomad.d/data.hcl", "/etc/nomad.d/client.hcl", "/etc/consul.d/client.hcl", "/usr/local/sbin/marquee-wait", "/etc/postgresql-common/createcluster.conf"] : contains(keys(nonsensitive(output.files)), f)]) && !anytrue([
    for f in ["/etc/nomad.d/tuned.hcl", "/etc/consul.d/tuned.hcl", "/etc/nomad.d/server.hcl", "/etc/consul.d/server.hcl"] : contains(keys(nonsensitive(output.files)), f)])
    error_message = "An untuned data machine has the files ${join(" ", keys(nonsensitive(output.files)))}"
  }
  assert {
    condition     = nonsensitive(strcontains(output.files["/etc/systemd/system/nomad.service.d/role.conf"].content, "\nExecStart=\nExecStart=/usr/local/sbin/marquee-wait 10.77.0.11 10.77.0.12 10.77.0.13 -- /usr/local/bin/nomad agent -config=/etc/nomad.d\n"))
    error_message = "A client's Nomad does not wait for the servers."
  }
  assert {
    condition     = nonsensitive(output.files["/etc/systemd/network/10-marquee.network"].content) == "[Match]\nName=eth0\n\n[Network]\nAddress=10.77.0.101/24\nGateway=10.77.0.1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
    error_message = "The static network is ${nonsensitive(output.files["/etc/systemd/network/10-marquee.network"].content)}"
  }
  assert {
    condition     = nonsensitive(output.files["/etc/resolv.conf"].content) == "nameserver 10.77.0.1\n"
    error_message = "resolv.conf is ${nonsensitive(output.files["/etc/resolv.conf"].content)}"
  }
  assert {
    condition     = nonsensitive(strcontains(output.files["/etc/chrony/chrony.conf"].content, "server 10.77.0.12 iburst minpoll 4 maxpoll 6\n") && !strcontains(output.files["/etc/chrony/chrony.conf"].content, "allow"))
    error_message = "A client does not take its time from the servers alone."
  }
}

# cloud-init and the seed script write the same files and run the same commands.
run "both_ways_agree" {
  command = plan

  variables {
    node = { name = "data-1", role = "client", address = "10.77.0.101", placements = ["data"] }
    secrets = {
      ca            = "the CA", certificate = "the certificate", key = "the key"
      consul_gossip = "g", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t"
    }
    programs    = { consul = { url = "https://example.com/consul.zip", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" } }
    data_device = "/dev/disk/by-id/one"
  }

  assert {
    condition = nonsensitive({ for f in yamldecode(output.user_data).write_files : f.path => "${f.permissions} ${f.content}" } ==
    { for path, f in output.files : path => "${f.mode} ${base64gzip(f.content)}" })
    error_message = "cloud-init does not write exactly the machine's files."
  }
  assert {
    condition     = alltrue([for path, f in nonsensitive(output.files) : length(regexall("\nput ${path} ${f.mode} <<'(END-OF-[0-9A-F]{16})'\n", nonsensitive(output.seed_script))) == 1 && strcontains(nonsensitive(output.seed_script), "'\n${f.content}END-OF-")])
    error_message = "The seed script does not write exactly the machine's files."
  }
  assert {
    condition     = length(regexall("\nput ", nonsensitive(output.seed_script))) == length(nonsensitive(output.files))
    error_message = "The seed script writes files of its own."
  }
  assert {
    condition = length(local.commands) == 7 && alltrue([for c in local.commands :
    strcontains(nonsensitive(output.seed_script), "\n${c}\n") && contains(nonsensitive(yamldecode(output.user_data)).runcmd, ["sh", "-ec", c])])
    error_message = "The two ways do not run the same commands."
  }
  assert {
    condition     = endswith(nonsensitive(output.seed_script), "\nexit 0\n") && startswith(nonsensitive(output.seed_script), "#!/bin/sh\n")
    error_message = "A disk is longer than the script on it: the script must end by itself."
  }
  assert {
    condition     = nonsensitive(startswith(output.user_data, "#cloud-config\n") && length(output.user_data) < 32768)
    error_message = "Clouds would not take the configuration."
  }
  assert {
    condition     = contains(nonsensitive(yamldecode(output.user_data)).packages, "postgresql-15") && contains(nonsensitive(yamldecode(output.user_data)).packages, "unzip")
    error_message = "cloud-init does not install what a data machine needs."
  }
  assert {
    condition     = nonsensitive(strcontains(output.files["/etc/systemd/system/nomad.service.d/role.conf"].content, "RequiresMountsFor=/var/lib/marquee/volumes"))
    error_message = "Nomad would start without the volume."
  }
  assert {
    condition     = nonsensitive(strcontains(jsondecode(output.files["/etc/nomad.d/node.json"].content).client.network_interface, "\"^10.77.0.101(/|$)\""))
    error_message = "Nomad is not told how to find the interface."
  }
}

run "nothing_secret_is_readable" {
  command = plan

  assert {
    condition = alltrue([for path, f in nonsensitive(output.files) : contains(["0600", "0640"], f.mode)
    if anytrue([for s in ["the key", "consul's gossip key", "nomad's gossip key", "agent's token", "nomad's token", "management token"] : strcontains(f.content, s)])])
    error_message = "A file with a secret can be read by everybody."
  }
}
