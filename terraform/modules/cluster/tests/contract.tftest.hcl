# Every bad input is refused, and by the variable that has it.
variables {
  name    = "test"
  network = "10.77.0.0/24"
  servers = 1
  pools = {
    client = { count = 1, first_host = 101, placements = ["edge", "services"], first_placements = ["data"] }
  }
  keys              = "./tests/keys"
  operator_networks = ["10.77.0.1/32"]
  interface         = "eth0"
  static_addresses  = true
}

run "good" {
  command = plan

  assert {
    condition     = length(output.nodes) == 2
    error_message = "Good input makes ${length(output.nodes)} machines instead of two."
  }
}

run "name_in_capitals" {
  command = plan

  variables {
    name = "Test"
  }
  expect_failures = [var.name]
}

run "empty_name" {
  command = plan

  variables {
    name = ""
  }
  expect_failures = [var.name]
}

run "network_that_is_none" {
  command = plan

  variables {
    network = "10.77.0.0"
  }
  expect_failures = [var.network]
}

run "network_with_a_bad_number" {
  command = plan

  variables {
    network = "10.77.256.0/24"
  }
  expect_failures = [var.network]
}

run "network_with_host_bits" {
  command = plan

  variables {
    network = "10.77.0.5/24"
  }
  expect_failures = [var.network]
}

run "network_too_narrow" {
  command = plan

  variables {
    network = "10.77.0.0/25"
  }
  expect_failures = [var.network]
}

run "network_too_wide" {
  command = plan

  variables {
    network = "10.0.0.0/15"
  }
  expect_failures = [var.network]
}

run "network_that_is_public" {
  command = plan

  variables {
    network = "203.0.113.0/24"
  }
  expect_failures = [var.network]
}

run "network_of_ipv6" {
  command = plan

  variables {
    network = "fd00::/64"
  }
  expect_failures = [var.network]
}

run "network_overlaps_one_inside" {
  command = plan

  variables {
    other_networks = ["10.77.0.128/25"]
  }
  expect_failures = [var.other_networks]
}

run "network_overlaps_one_around" {
  command = plan

  variables {
    other_networks = ["192.168.0.0/16", "10.0.0.0/8"]
  }
  expect_failures = [var.other_networks]
}

run "network_overlaps_nomads_bridge" {
  command = plan

  variables {
    network = "172.26.0.0/16"
  }
  expect_failures = [var.other_networks]
}

run "other_network_that_is_none" {
  command = plan

  variables {
    other_networks = ["vpn"]
  }
  expect_failures = [var.other_networks]
}

run "no_servers" {
  command = plan

  variables {
    servers = 0
  }
  expect_failures = [var.servers]
}

run "two_servers" {
  command = plan

  variables {
    servers = 2
  }
  expect_failures = [var.servers]
}

run "four_servers" {
  command = plan

  variables {
    servers = 4
  }
  expect_failures = [var.servers]
}

run "nine_servers" {
  command = plan

  variables {
    servers = 9
  }
  expect_failures = [var.servers]
}

run "pool_named_server" {
  command = plan

  variables {
    pools = { server = { count = 2, first_host = 101 } }
  }
  expect_failures = [var.pools]
}

run "pool_name_that_is_no_host_name" {
  command = plan

  variables {
    pools = { "Edge_1" = { count = 2, first_host = 101 } }
  }
  expect_failures = [var.pools]
}

run "negative_count" {
  command = plan

  variables {
    pools = { client = { count = -1, first_host = 101 } }
  }
  expect_failures = [var.pools]
}

run "half_a_machine" {
  command = plan

  variables {
    pools = { client = { count = 1.5, first_host = 101 } }
  }
  expect_failures = [var.pools]
}

run "too_many_machines" {
  command = plan

  variables {
    pools = { client = { count = 101, first_host = 101 } }
  }
  expect_failures = [var.pools]
}

run "unknown_placement" {
  command = plan

  variables {
    pools = { client = { count = 2, first_host = 101, placements = ["gpu"] } }
  }
  expect_failures = [var.pools]
}

run "addresses_overlap_the_servers" {
  command = plan

  variables {
    pools = { client = { count = 2, first_host = 10 } }
  }
  expect_failures = [var.pools]
}

run "addresses_of_pools_overlap" {
  command = plan

  variables {
    pools = { client = { count = 2, first_host = 101 }, edge = { count = 1, first_host = 102 } }
  }
  expect_failures = [var.pools]
}

run "addresses_beyond_the_network" {
  command = plan

  variables {
    pools = { client = { count = 2, first_host = 254 } }
  }
  expect_failures = [var.pools]
}

run "no_keys_at_all" {
  command = plan

  variables {
    keys = "./tests/nothing"
  }
  expect_failures = [var.keys]
}

run "keys_of_a_machine_missing" {
  command = plan

  variables {
    pools = { client = { count = 5, first_host = 101 } }
  }
  expect_failures = [var.keys]
}

run "secrets_that_are_no_json" {
  command = plan

  variables {
    keys    = "./tests/keys-broken"
    servers = 1
    pools   = {}
  }
  expect_failures = [var.keys]
}

run "token_of_a_machine_missing" {
  command = plan

  variables {
    keys    = "./tests/keys-short"
    servers = 1
    pools   = {}
  }
  expect_failures = [var.keys]
}

run "no_operator_networks" {
  command = plan

  variables {
    operator_networks = []
  }
  expect_failures = [var.operator_networks]
}

run "name_server_that_is_none" {
  command = plan

  variables {
    name_servers = ["resolver"]
  }
  expect_failures = [var.name_servers]
}

run "volume_of_no_machine" {
  command = plan

  variables {
    data_devices = { data-1 = "/dev/disk/by-id/one" }
  }
  expect_failures = [var.data_devices]
}
