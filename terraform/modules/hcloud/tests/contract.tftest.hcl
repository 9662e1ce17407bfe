# Every bad input is refused, and by the variable that has it. Numbers stand for
# what it would number.
mock_provider "hcloud" {
  mock_resource "hcloud_network" {
    defaults = { id = "1" }
  }
  mock_resource "hcloud_network_subnet" {
    defaults = { id = "1-10.80.0.0/22" }
  }
  mock_resource "hcloud_ssh_key" {
    defaults = { id = "2" }
  }
  mock_resource "hcloud_firewall" {
    defaults = { id = "3" }
  }
  mock_resource "hcloud_placement_group" {
    defaults = { id = "4" }
  }
  mock_resource "hcloud_server" {
    defaults = { id = "5", ipv4_address = "198.51.100.7" }
  }
  mock_resource "hcloud_volume" {
    defaults = { id = "6", linux_device = "/dev/disk/by-id/scsi-0HC_Volume_6" }
  }
  mock_resource "hcloud_load_balancer" {
    defaults = { id = "7", ipv4 = "198.51.100.8", ipv6 = "2001:db8::8" }
  }
}

variables {
  name = "test"
  nodes = {
    server-1 = { role = "server", address = "10.80.0.11" }
    edge-1   = { role = "client", address = "10.80.0.31", placements = ["edge"] }
  }
  user_data         = { server-1 = "of server-1", edge-1 = "of edge-1" }
  fingerprints      = { server-1 = "one", edge-1 = "two" }
  network           = "10.80.0.0/22"
  server_types      = { server = "cx22", edge = "cpx21" }
  operator_networks = ["192.0.2.0/24"]
  ssh_key           = "ssh-ed25519 AAAAC3Nz operator\n"
  certificates      = [11]
}

run "good" {
  command = plan

  assert {
    condition     = keys(hcloud_server.machine) == ["edge-1", "server-1"]
    error_message = "Good input does not make two machines."
  }
}

run "name_in_capitals" {
  command = plan

  variables {
    name = "Test"
  }
  expect_failures = [var.name]
}

run "machine_without_pool" {
  command = plan

  variables {
    nodes = { edge = { role = "client", address = "10.80.0.31", placements = ["edge"] } }
  }
  expect_failures = [var.nodes]
}

run "unknown_role" {
  command = plan

  variables {
    nodes = { edge-1 = { role = "worker", address = "10.80.0.31", placements = ["edge"] } }
  }
  expect_failures = [var.nodes]
}

run "address_outside_of_the_network" {
  command = plan

  variables {
    nodes = { edge-1 = { role = "client", address = "10.81.0.31", placements = ["edge"] } }
  }
  expect_failures = [var.nodes]
}

run "no_edge" {
  command = plan

  variables {
    nodes = { server-1 = { role = "server", address = "10.80.0.11" } }
  }
  expect_failures = [var.nodes]
}

run "machine_without_configuration" {
  command = plan

  variables {
    user_data = { server-1 = "x" }
  }
  expect_failures = [var.user_data]
}

run "machine_without_fingerprint" {
  command = plan

  variables {
    fingerprints = { server-1 = "x" }
  }
  expect_failures = [var.fingerprints]
}

run "network_that_is_none" {
  command = plan

  variables {
    network = "10.80.0.0"
  }
  expect_failures = [var.network]
}

run "unknown_location" {
  command = plan

  variables {
    location = "mars1"
  }
  expect_failures = [var.location]
}

run "image_that_is_not_debian_12" {
  command = plan

  variables {
    image = "ubuntu-24.04"
  }
  expect_failures = [var.image]
}

run "pool_without_type" {
  command = plan

  variables {
    server_types = { server = "cx22" }
  }
  expect_failures = [var.server_types]
}

run "type_that_is_none" {
  command = plan

  variables {
    server_types = { server = "large", edge = "cx22" }
  }
  expect_failures = [var.server_types]
}

run "volume_too_small" {
  command = plan

  variables {
    data_volume = 5
  }
  expect_failures = [var.data_volume]
}

run "no_operators" {
  command = plan

  variables {
    operator_networks = []
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

run "operator_network_without_mask" {
  command = plan

  variables {
    operator_networks = ["192.0.2.7"]
  }
  expect_failures = [var.operator_networks]
}

run "ssh_key_that_is_none" {
  command = plan

  variables {
    ssh_key = "-----BEGIN OPENSSH PRIVATE KEY-----"
  }
  expect_failures = [var.ssh_key]
}

run "unknown_load_balancer_type" {
  command = plan

  variables {
    load_balancer_type = "lb99"
  }
  expect_failures = [var.load_balancer_type]
}

run "edge_without_tls" {
  command = plan

  variables {
    certificates = []
  }
  expect_failures = [var.certificates]
}

run "certificate_that_is_none" {
  command = plan

  variables {
    certificates = [0]
  }
  expect_failures = [var.certificates]
}
