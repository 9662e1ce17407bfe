# What the module makes of good input, without Hetzner Cloud. Numbers stand for
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
    server-1   = { role = "server", address = "10.80.0.11" }
    edge-1     = { role = "client", address = "10.80.0.31", placements = ["edge"] }
    services-1 = { role = "client", address = "10.80.1.45", placements = ["services"] }
    data-1     = { role = "client", address = "10.80.0.151", placements = ["data"] }
  }
  user_data         = { server-1 = "of server-1", edge-1 = "of edge-1", services-1 = "of services-1", data-1 = "of data-1" }
  fingerprints      = { server-1 = "one", edge-1 = "two", services-1 = "three", data-1 = "four" }
  network           = "10.80.0.0/22"
  server_types      = { server = "cx22", edge = "cpx21", services = "cx32", data = "ccx13" }
  operator_networks = ["192.0.2.0/24", "198.51.100.1/32"]
  ssh_key           = "ssh-ed25519 AAAAC3Nz operator\n"
  certificates      = [11, 12]
}

run "made" {
  assert {
    condition     = { for name, s in hcloud_server.machine : name => "${s.name} ${s.server_type} ${one(s.network).ip}" } == { server-1 = "test-server-1 cx22 10.80.0.11", edge-1 = "test-edge-1 cpx21 10.80.0.31", services-1 = "test-services-1 cx32 10.80.1.45", data-1 = "test-data-1 ccx13 10.80.0.151" }
    error_message = "The machines are ${jsonencode({ for name, s in hcloud_server.machine : name => "${s.name} ${s.server_type} ${one(s.network).ip}" })}"
  }
  assert {
    condition     = { for name, s in hcloud_server.machine : name => nonsensitive(s.user_data) } == { server-1 = "of server-1", edge-1 = "of edge-1", services-1 = "of services-1", data-1 = "of data-1" }
    error_message = "A machine has another one's configuration."
  }
  # The written list of what comes in through public addresses of machines.
  assert {
    condition     = { for role, f in hcloud_firewall.machines : role => join(", ", sort([for r in f.rule : "${r.direction} ${r.protocol} ${r.port}"])) } == { server = "in tcp 22, in tcp 4646, in tcp 4700, in tcp 8501", client = "in tcp 22" }
    error_message = "The firewalls let in ${jsonencode({ for role, f in hcloud_firewall.machines : role => [for r in f.rule : "${r.protocol} ${r.port}"] })}"
  }
  assert {
    condition     = alltrue(flatten([for f in values(hcloud_firewall.machines) : [for r in f.rule : r.source_ips == toset(["192.0.2.0/24", "198.51.100.1/32"])]]))
    error_message = "A firewall lets in others than operators."
  }
  # The written list of what comes in through the load balancer.
  assert {
    condition = {
      https   = "${hcloud_load_balancer_service.https.protocol} ${hcloud_load_balancer_service.https.listen_port} ${hcloud_load_balancer_service.https.destination_port}"
      devices = "${hcloud_load_balancer_service.devices.protocol} ${hcloud_load_balancer_service.devices.listen_port} ${hcloud_load_balancer_service.devices.destination_port}"
    } == { https = "https 443 8080", devices = "tcp 1883 1883" }
    error_message = "The load balancer opens other ports than 443 and 1883."
  }
  assert {
    condition     = hcloud_load_balancer_service.https.http[0].redirect_http && hcloud_load_balancer_service.https.http[0].certificates == toset([11, 12])
    error_message = "Calls without TLS are answered, or the certificates are not those given."
  }
  assert {
    condition     = hcloud_load_balancer_target.edge.label_selector == "environment=test,edge=true" && hcloud_load_balancer_target.edge.use_private_ip && [for name, s in hcloud_server.machine : name if lookup(s.labels, "edge", "") == "true"] == ["edge-1"]
    error_message = "The load balancer does not lead to the edge machines, and to them alone, in the private network."
  }
  assert {
    condition     = keys(hcloud_volume.data) == ["data-1"] && keys(hcloud_volume_attachment.data) == ["data-1"] && hcloud_volume.data["data-1"].delete_protection
    error_message = "Volumes are for ${jsonencode(keys(hcloud_volume.data))}, or can be deleted."
  }
  assert {
    condition     = keys(hcloud_placement_group.pools) == ["data-1", "edge-1", "server-1", "services-1"] && alltrue([for g in values(hcloud_placement_group.pools) : g.type == "spread"])
    error_message = "Pools do not have spread placement groups of their own: ${jsonencode(keys(hcloud_placement_group.pools))}"
  }
  assert {
    condition     = hcloud_network_subnet.cluster.network_zone == "eu-central"
    error_message = "The private network is in zone ${hcloud_network_subnet.cluster.network_zone}."
  }
  assert {
    condition     = output.nodes["server-1"].operator_address == "198.51.100.7" && output.load_balancer.ipv4 == "198.51.100.8" && output.data_devices == { data-1 = "/dev/disk/by-id/scsi-0HC_Volume_6" }
    error_message = "Outputs are ${jsonencode([output.nodes, output.load_balancer, output.data_devices])}"
  }
}

# Apply never changes a machine that runs: it says who is behind.
run "a_changed_machine_is_left_alone_and_named" {
  variables {
    user_data    = { server-1 = "of server-1", edge-1 = "another one", services-1 = "of services-1", data-1 = "of data-1" }
    fingerprints = { server-1 = "one", edge-1 = "five", services-1 = "three", data-1 = "four" }
    server_types = { server = "cx32", edge = "cpx21", services = "cx32", data = "ccx13" }
    image        = "12345"
  }

  assert {
    condition     = nonsensitive(hcloud_server.machine["edge-1"].user_data) == "of edge-1" && hcloud_server.machine["server-1"].server_type == "cx22" && hcloud_server.machine["server-1"].image == "debian-12"
    error_message = "A machine that runs was made anew or resized."
  }
  assert {
    condition     = output.outdated == tolist(["edge-1"])
    error_message = "outdated is ${jsonencode(output.outdated)}"
  }
}

run "the_eleventh_machine_has_a_group_of_its_own" {
  command = plan

  variables {
    nodes = {
      edge-10 = { role = "client", address = "10.80.0.40", placements = ["edge"] }
      edge-11 = { role = "client", address = "10.80.0.41", placements = ["edge"] }
    }
    user_data        = { edge-10 = "ten", edge-11 = "eleven" }
    fingerprints     = { edge-10 = "ten", edge-11 = "eleven" }
    location         = "ash"
    public_addresses = false
  }

  assert {
    condition     = keys(hcloud_placement_group.pools) == ["edge-1", "edge-2"]
    error_message = "Eleven machines are in the groups ${jsonencode(keys(hcloud_placement_group.pools))}"
  }
  assert {
    condition     = output.nodes["edge-11"].operator_address == "10.80.0.41" && !one(hcloud_server.machine["edge-11"].public_net).ipv4_enabled
    error_message = "Machines have public addresses although they should not."
  }
  assert {
    condition     = hcloud_network_subnet.cluster.network_zone == "us-east"
    error_message = "The private network is in zone ${hcloud_network_subnet.cluster.network_zone}."
  }
}
