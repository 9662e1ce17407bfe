# Every bad input is refused, and by the variable that has it.
variables {
  node    = { name = "client-1", role = "client", address = "10.77.0.101", placements = ["edge"], interface = "eth0" }
  servers = ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
  secrets = {
    ca            = "the CA", certificate = "the certificate", key = "the key"
    consul_gossip = "g", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t"
  }
  cluster_addresses = ["10.77.0.2-10.77.0.254"]
  operator_networks = ["10.77.0.1/32"]
  ssh_key           = "ssh-ed25519 AAAAC3Nz operator"
}

run "good" {
  command = plan

  assert {
    condition     = length(output.fingerprint) == 64
    error_message = "Good input makes no machine."
  }
}

run "name_that_is_no_host_name" {
  command = plan

  variables {
    node = { name = "Client_1", role = "client", address = "10.77.0.101", placements = ["edge"], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.node]
}

run "unknown_role" {
  command = plan

  variables {
    node = { name = "client-1", role = "worker", address = "10.77.0.101", placements = ["edge"], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.node]
}

run "address_with_mask" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.101/24", placements = ["edge"], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.node]
}

run "address_that_is_none" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.301", placements = ["edge"], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.node]
}

run "unknown_placement" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.101", placements = ["gpu"], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.node]
}

run "placement_on_a_server" {
  command = plan

  variables {
    node    = { name = "server-1", role = "server", address = "10.77.0.11", placements = ["edge"], node_pool = "default", interface = "eth0" }
    secrets = { ca = "c", certificate = "c", key = "k", consul_gossip = "g", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t", consul_management = "m" }
  }
  expect_failures = [var.node]
}

run "node_pool_all" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.101", placements = ["edge"], node_pool = "all", interface = "eth0" }
  }
  expect_failures = [var.node]
}

run "interface_that_is_none" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.101", placements = ["edge"], node_pool = "default", interface = "eth0; reboot" }
  }
  expect_failures = [var.node]
}

run "no_servers" {
  command = plan

  variables {
    servers = []
  }
  expect_failures = [var.servers]
}

run "two_servers" {
  command = plan

  variables {
    servers = ["10.77.0.11", "10.77.0.12"]
  }
  expect_failures = [var.servers]
}

run "four_servers" {
  command = plan

  variables {
    servers = ["10.77.0.11", "10.77.0.12", "10.77.0.13", "10.77.0.14"]
  }
  expect_failures = [var.servers]
}

run "nine_servers" {
  command = plan

  variables {
    servers = ["10.77.0.11", "10.77.0.12", "10.77.0.13", "10.77.0.14", "10.77.0.15", "10.77.0.16", "10.77.0.17", "10.77.0.18", "10.77.0.19"]
  }
  expect_failures = [var.servers]
}

run "server_that_is_no_address" {
  command = plan

  variables {
    servers = ["server-1"]
  }
  expect_failures = [var.servers]
}

run "server_twice" {
  command = plan

  variables {
    servers = ["10.77.0.11", "10.77.0.12", "10.77.0.11"]
  }
  expect_failures = [var.servers]
}

run "server_not_among_servers" {
  command = plan

  variables {
    node    = { name = "server-9", role = "server", address = "10.77.0.19", placements = [], node_pool = "default", interface = "eth0" }
    secrets = { ca = "c", certificate = "c", key = "k", consul_gossip = "g", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t", consul_management = "m" }
  }
  expect_failures = [var.servers]
}

run "client_with_a_servers_address" {
  command = plan

  variables {
    node = { name = "client-1", role = "client", address = "10.77.0.12", placements = ["edge"], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.servers]
}

run "empty_key" {
  command = plan

  variables {
    secrets = { ca = "c", certificate = "c", key = "", consul_gossip = "g", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t" }
  }
  expect_failures = [var.secrets]
}

run "empty_gossip_key" {
  command = plan

  variables {
    secrets = { ca = "c", certificate = "c", key = "k", consul_gossip = "", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t" }
  }
  expect_failures = [var.secrets]
}

run "server_without_management_token" {
  command = plan

  variables {
    node = { name = "server-1", role = "server", address = "10.77.0.11", placements = [], node_pool = "default", interface = "eth0" }
  }
  expect_failures = [var.secrets]
}

run "client_with_management_token" {
  command = plan

  variables {
    secrets = { ca = "c", certificate = "c", key = "k", consul_gossip = "g", nomad_gossip = "n", consul_agent = "a", consul_nomad = "t", consul_management = "m" }
  }
  expect_failures = [var.secrets]
}

run "no_cluster_addresses" {
  command = plan

  variables {
    cluster_addresses = []
  }
  expect_failures = [var.cluster_addresses]
}

run "cluster_addresses_as_network" {
  command = plan

  variables {
    cluster_addresses = ["10.77.0.0/24"]
  }
  expect_failures = [var.cluster_addresses]
}

run "operator_network_without_mask" {
  command = plan

  variables {
    operator_networks = ["192.0.2.7"]
  }
  expect_failures = [var.operator_networks]
}

run "operator_network_of_ipv6" {
  command = plan

  variables {
    operator_networks = ["2001:db8::/64"]
  }
  expect_failures = [var.operator_networks]
}

run "operators_from_everywhere" {
  command = plan

  variables {
    operator_networks = ["0.0.0.0/0"]
  }
  expect_failures = [var.operator_networks]
}

run "public_port_of_an_agent" {
  command = plan

  variables {
    public_ports = [8501]
  }
  expect_failures = [var.public_ports]
}

run "public_port_of_the_mesh" {
  command = plan

  variables {
    public_ports = [20000]
  }
  expect_failures = [var.public_ports]
}

run "ssh_key_that_is_private" {
  command = plan

  variables {
    ssh_key = "-----BEGIN OPENSSH PRIVATE KEY-----"
  }
  expect_failures = [var.ssh_key]
}

run "two_ssh_keys" {
  command = plan

  variables {
    ssh_key = "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two"
  }
  expect_failures = [var.ssh_key]
}

run "ntp_server_with_options" {
  command = plan

  variables {
    ntp_servers = ["time.example.com iburst"]
  }
  expect_failures = [var.ntp_servers]
}

run "gateway_elsewhere" {
  command = plan

  variables {
    static_network = { prefix = 24, gateway = "10.78.0.1" }
  }
  expect_failures = [var.static_network]
}

run "prefix_too_long" {
  command = plan

  variables {
    static_network = { prefix = 31, gateway = "10.77.0.1" }
  }
  expect_failures = [var.static_network]
}

run "static_network_without_interface" {
  command = plan

  variables {
    static_network = { prefix = 24, gateway = "10.77.0.1" }
    node           = { name = "client-1", role = "client", address = "10.77.0.101", placements = ["edge"], node_pool = "default", interface = "" }
  }
  expect_failures = [var.static_network]
}

run "program_that_no_machine_runs" {
  command = plan

  variables {
    programs = { vault = { url = "https://example.com/vault", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" } }
  }
  expect_failures = [var.programs]
}

run "program_without_tls" {
  command = plan

  variables {
    programs = { consul = { url = "http://example.com/consul", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" } }
  }
  expect_failures = [var.programs]
}

run "program_without_sum" {
  command = plan

  variables {
    programs = { consul = { url = "https://example.com/consul", sha256 = "" } }
  }
  expect_failures = [var.programs]
}

run "package_with_blanks" {
  command = plan

  variables {
    extra_packages = ["htop; reboot"]
  }
  expect_failures = [var.extra_packages]
}

run "data_device_elsewhere" {
  command = plan

  variables {
    data_device = "sdb"
  }
  expect_failures = [var.data_device]
}

run "data_elsewhere" {
  command = plan

  variables {
    data_jobs = ["../account-db"]
  }
  expect_failures = [var.data_jobs]
}
