locals {
  pools = { for name in keys(var.nodes) : name => replace(name, "/-[0-9]+$/", "") }
  # A spread group holds ten servers at the most.
  groups = { for name in keys(var.nodes) : name => "${local.pools[name]}-${floor((tonumber(regex("[0-9]+$", name)) - 1) / 10) + 1}" }
  data   = { for name, n in var.nodes : name => n if contains(n.placements, "data") }
  zone   = { fsn1 = "eu-central", nbg1 = "eu-central", hel1 = "eu-central", ash = "us-east", hil = "us-west", sin = "ap-southeast" }[var.location]
  labels = { environment = var.name }

  operator_ports = { server = ["22", "4646", "4700", "8501"], client = ["22"] }
}

resource "hcloud_network" "cluster" {
  name              = var.name
  ip_range          = var.network
  labels            = local.labels
  delete_protection = var.delete_protection
}

resource "hcloud_network_subnet" "cluster" {
  network_id   = hcloud_network.cluster.id
  type         = "cloud"
  network_zone = local.zone
  ip_range     = var.network
}

resource "hcloud_ssh_key" "operators" {
  name       = var.name
  public_key = trimspace(var.ssh_key)
  labels     = local.labels
}

# Firewalls see what comes to public addresses. Nobody but operators has
# anything to do there: calls come through the load balancer, from inside.
resource "hcloud_firewall" "machines" {
  for_each = local.operator_ports

  name   = "${var.name}-${each.key}"
  labels = local.labels

  dynamic "rule" {
    for_each = each.value
    content {
      description = "operators"
      direction   = "in"
      protocol    = "tcp"
      port        = rule.value
      source_ips  = var.operator_networks
    }
  }
}

# Machines of a pool stand on different hosts, so that a host takes one along.
resource "hcloud_placement_group" "pools" {
  for_each = toset(values(local.groups))

  name   = "${var.name}-${each.key}"
  type   = "spread"
  labels = local.labels
}

resource "hcloud_volume" "data" {
  for_each = local.data

  name              = "${var.name}-${each.key}"
  size              = var.data_volume
  location          = var.location
  labels            = local.labels
  delete_protection = var.delete_protection
}

resource "hcloud_server" "machine" {
  for_each = var.nodes

  name               = "${var.name}-${each.key}"
  server_type        = var.server_types[local.pools[each.key]]
  image              = var.image
  location           = var.location
  user_data          = var.user_data[each.key]
  ssh_keys           = [hcloud_ssh_key.operators.id]
  placement_group_id = hcloud_placement_group.pools[local.groups[each.key]].id
  firewall_ids       = [hcloud_firewall.machines[each.value.role].id]
  labels             = merge(local.labels, { pool = local.pools[each.key] }, { for p in each.value.placements : p => "true" })

  public_net {
    ipv4_enabled = var.public_addresses
    ipv6_enabled = false
  }

  network {
    network_id = hcloud_network.cluster.id
    ip         = each.value.address
    alias_ips  = []
  }

  # Apply makes machines that are missing and leaves those that run: a new
  # configuration, image or type comes with -replace, one machine at a time.
  lifecycle {
    ignore_changes = [image, location, placement_group_id, server_type, ssh_keys, user_data]
  }

  depends_on = [hcloud_network_subnet.cluster]
}

resource "hcloud_volume_attachment" "data" {
  for_each = local.data

  volume_id = hcloud_volume.data[each.key].id
  server_id = hcloud_server.machine[each.key].id
  automount = false
}

# What each machine was made of, to compare with what it would be made of now.
resource "terraform_data" "made_of" {
  for_each = var.nodes

  input = var.fingerprints[each.key]

  lifecycle {
    ignore_changes       = [input]
    replace_triggered_by = [hcloud_server.machine[each.key].id]
  }
}

resource "hcloud_load_balancer" "edge" {
  name               = "${var.name}-edge"
  load_balancer_type = var.load_balancer_type
  location           = var.location
  labels             = local.labels
  delete_protection  = var.delete_protection
}

resource "hcloud_load_balancer_network" "edge" {
  load_balancer_id = hcloud_load_balancer.edge.id
  subnet_id        = hcloud_network_subnet.cluster.id
  ip               = cidrhost(var.network, 5)
}

resource "hcloud_load_balancer_target" "edge" {
  load_balancer_id = hcloud_load_balancer.edge.id
  type             = "label_selector"
  label_selector   = "environment=${var.name},edge=true"
  use_private_ip   = true

  depends_on = [hcloud_load_balancer_network.edge]
}

# People and programs: TLS ends here, port 80 only sends them on.
resource "hcloud_load_balancer_service" "https" {
  load_balancer_id = hcloud_load_balancer.edge.id
  protocol         = "https"
  listen_port      = 443
  destination_port = 8080

  http {
    certificates  = var.certificates
    redirect_http = true
  }

  health_check {
    protocol = "tcp"
    port     = 8080
    interval = 5
    timeout  = 3
    retries  = 2
  }
}

# Devices: bytes pass through to the device service.
resource "hcloud_load_balancer_service" "devices" {
  load_balancer_id = hcloud_load_balancer.edge.id
  protocol         = "tcp"
  listen_port      = 1883
  destination_port = 1883

  health_check {
    protocol = "tcp"
    port     = 1883
    interval = 5
    timeout  = 3
    retries  = 2
  }
}
