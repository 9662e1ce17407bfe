# What the module makes of good input. tests/keys stands for a folder that
# `marquee keys new` filled: nothing in it is a key.
variables {
  name    = "test"
  network = "10.77.0.0/24"
  pools = {
    client = { count = 2, first_host = 101, placements = ["edge", "services"], first_placements = ["data"] }
  }
  keys              = "./tests/keys"
  operator_networks = ["10.77.0.1/32"]
  interface         = "eth0"
  static_addresses  = true
}

run "machines" {
  command = plan

  assert {
    condition     = { for name, n in output.nodes : name => n.address } == { server-1 = "10.77.0.11", server-2 = "10.77.0.12", server-3 = "10.77.0.13", client-1 = "10.77.0.101", client-2 = "10.77.0.102" }
    error_message = "The machines are ${jsonencode(output.nodes)}"
  }
  assert {
    condition     = { for name, n in output.nodes : name => n.placements if n.role == "client" } == { client-1 = toset(["data", "edge", "services"]), client-2 = toset(["edge", "services"]) }
    error_message = "Placements are ${jsonencode({ for name, n in output.nodes : name => n.placements })}"
  }
  assert {
    condition = output.environment == {
      name    = "test", nomad_addr = "https://10.77.0.11:4646", consul_addr = "https://10.77.0.11:8501", ca_file = abspath("./tests/keys/ca.pem")
      servers = ["10.77.0.11", "10.77.0.12", "10.77.0.13"], edge = ["10.77.0.101", "10.77.0.102"]
    }
    error_message = "The environment is ${jsonencode(output.environment)}"
  }
}

run "each_machine_has_its_own_secrets" {
  command = plan

  assert {
    condition = alltrue([for name, script in nonsensitive(output.seed_scripts) : alltrue([
      for other in keys(output.nodes) : (strcontains(script, "key of ${other}\n") && strcontains(script, "token-of-${other}\"")) == (other == name)
    ])])
    error_message = "A machine has another one's key or token, or not its own."
  }
  assert {
    condition = alltrue([for name, script in nonsensitive(output.seed_scripts) :
      strcontains(script, "consul-management") == startswith(name, "server-") &&
      strcontains(script, "consul-nomad-server") == startswith(name, "server-") &&
      strcontains(script, "nomad-gossip") == startswith(name, "server-") &&
    strcontains(script, "consul-nomad-client") == startswith(name, "client-")])
    error_message = "A client has a server's secrets, or a server a client's."
  }
  assert {
    condition     = !anytrue([for script in concat(values(nonsensitive(output.seed_scripts)), values(nonsensitive(output.user_data))) : strcontains(script, "nomad-management")])
    error_message = "The operator's token for Nomad is on a machine."
  }
  assert {
    condition     = alltrue([for script in values(nonsensitive(output.seed_scripts)) : strcontains(script, "add element inet marquee cluster { 10.77.0.2-10.77.0.254 }\n")])
    error_message = "The gateway counts as one of the machines."
  }
}

run "more_or_fewer_clients_change_no_other_machine" {
  command = plan

  module {
    source = "./tests/growth"
  }

  assert {
    condition     = length(output.fingerprints.two) == 5 && length(output.fingerprints.four) == 7
    error_message = "There are ${length(output.fingerprints.two)} and ${length(output.fingerprints.four)} machines."
  }
  assert {
    condition     = alltrue([for name, f in output.fingerprints.two : output.fingerprints.four[name] == f])
    error_message = "With more clients other machines would be made differently."
  }
  assert {
    condition     = alltrue([for name, f in output.fingerprints.one : output.fingerprints.two[name] == f])
    error_message = "With fewer clients other machines would be made differently."
  }
}

run "pools" {
  command = plan

  variables {
    network = "10.80.0.0/22"
    pools = {
      edge     = { count = 2, first_host = 31, placements = ["edge"], node_pool = "edge" }
      services = { count = 3, first_host = 301, placements = ["services"], node_pool = "services" }
      data     = { count = 1, first_host = 151, placements = ["data"], node_pool = "data" }
    }
    static_addresses = false
    interface        = ""
    data_devices     = { data-1 = "/dev/disk/by-id/one" }
  }

  assert {
    condition = { for name, n in output.nodes : name => "${n.address} ${n.node_pool}" if n.role == "client" } == {
      edge-1     = "10.80.0.31 edge", edge-2 = "10.80.0.32 edge", data-1 = "10.80.0.151 data"
      services-1 = "10.80.1.45 services", services-2 = "10.80.1.46 services", services-3 = "10.80.1.47 services"
    }
    error_message = "The machines are ${jsonencode(output.nodes)}"
  }
  assert {
    condition     = { for name, u in nonsensitive(output.seed_scripts) : name => strcontains(u, "What=/dev/disk/by-id/one\n") if strcontains(u, "/dev/disk/by-id/one") } == { data-1 = true }
    error_message = "The volume is not the data machine's."
  }
}
