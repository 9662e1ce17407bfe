# The environment as a whole, without Hetzner Cloud. Numbers stand for what it
# would number; the keys are those of the tests of module cluster.
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
  keys              = "../../modules/cluster/tests/keys"
  operator_networks = ["192.0.2.0/24"]
  certificates      = [11]
  programs = {
    consul    = { url = "https://example.com/consul.zip", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
    nomad     = { url = "https://example.com/nomad.zip", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
    artifactd = { url = "https://example.com/artifactd", sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
  }
}

run "made" {
  assert {
    condition = output.environment == {
      name    = "hcloud", nomad_addr = "https://198.51.100.7:4646", consul_addr = "https://198.51.100.7:8501"
      ca_file = abspath("../../modules/cluster/tests/keys/ca.pem")
      servers = ["198.51.100.7", "198.51.100.7", "198.51.100.7"], edge = ["198.51.100.8"], box = ""
    }
    error_message = "The environment is ${jsonencode(output.environment)}"
  }
  assert {
    condition = { for name, n in output.nodes : name => "${n.address} ${n.node_pool}" } == {
      server-1   = "10.80.0.11 default", server-2 = "10.80.0.12 default", server-3 = "10.80.0.13 default"
      edge-1     = "10.80.0.31 edge", edge-2 = "10.80.0.32 edge", data-1 = "10.80.0.151 data"
      services-1 = "10.80.1.45 services", services-2 = "10.80.1.46 services", services-3 = "10.80.1.47 services"
    }
    error_message = "The machines are ${jsonencode(output.nodes)}"
  }
  assert {
    condition     = length(output.outdated) == 0
    error_message = "New machines are outdated: ${join(" ", output.outdated)}"
  }
}

# What the environment refuses itself; its modules refuse the rest.
run "no_machine_for_databases" {
  command = plan

  variables {
    data = 0
  }
  expect_failures = [var.data]
}

run "plain_image_without_programs" {
  command = plan

  variables {
    image    = "debian-12"
    programs = {}
  }
  expect_failures = [var.programs]
}
