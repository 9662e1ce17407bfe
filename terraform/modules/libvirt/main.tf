locals {
  images = { for i in concat([var.image], var.previous_images) : basename(i) => i }
}

resource "libvirt_network" "cluster" {
  name      = var.name
  mode      = var.network_mode
  bridge    = var.bridge
  addresses = [var.network]

  # Machines know their addresses: no lease is waited for, and an isolated
  # network needs no dnsmasq.
  dhcp {
    enabled = false
  }
  dns {
    enabled = var.network_mode != "none"
  }
}

resource "libvirt_pool" "cluster" {
  name = var.name
  type = "dir"

  target {
    path = var.storage
  }
}

resource "libvirt_volume" "image" {
  for_each = local.images

  name   = each.key
  pool   = libvirt_pool.cluster.name
  source = each.value
}

resource "libvirt_volume" "root" {
  for_each = var.nodes

  name           = "${each.key}.qcow2"
  pool           = libvirt_pool.cluster.name
  base_volume_id = libvirt_volume.image[basename(var.image)].id
  size           = var.disk * 1024 * 1024 * 1024
  format         = "qcow2"

  # Another image is for new machines. One that runs moves to it with
  # -replace, when its turn comes: all at once would be the end of the cluster.
  lifecycle {
    ignore_changes = [base_volume_id, size]
  }
}

# The seed is a disk that is a shell script. This resource writes a text to a
# volume and does nothing else; libvirt_cloudinit_disk reads its disk back at
# every refresh, in which the provider deadlocks now and then.
resource "libvirt_combustion" "seed" {
  for_each = var.nodes

  name    = "${each.key}.seed"
  pool    = libvirt_pool.cluster.name
  content = var.seed_scripts[each.key]

  # As with images: a new certificate must not restart every machine at once.
  lifecycle {
    ignore_changes = [content]
  }
}

# What each machine was made of, to compare with what it would be made of now.
resource "terraform_data" "made_of" {
  for_each = var.nodes

  input = var.fingerprints[each.key]

  lifecycle {
    ignore_changes       = [input]
    replace_triggered_by = [libvirt_combustion.seed[each.key]]
  }
}

resource "libvirt_domain" "machine" {
  for_each = var.nodes

  name   = "${var.name}-${each.key}"
  type   = var.domain_type
  vcpu   = var.cpus
  memory = each.value.role == "server" ? var.memory.server : var.memory.client

  cpu {
    mode = var.domain_type == "kvm" ? "host-passthrough" : "maximum"
  }

  kernel = var.kernel
  initrd = var.initrd
  # One map of arguments that all have values: anything else reads back
  # differently.
  cmdline = [merge({ root = "LABEL=root", console = "ttyS0", "net.ifnames" = "0" }, var.cmdline)]

  disk {
    volume_id = libvirt_volume.root[each.key].id
  }
  # The provider's id of a text volume is the volume's and a number of its own.
  disk {
    volume_id = split(";", libvirt_combustion.seed[each.key].id)[0]
  }

  network_interface {
    network_id = libvirt_network.cluster.id
    mac        = format("52:54:00:%02X:%02X:%02X", slice(split(".", each.value.address), 1, 4)...)
  }

  console {
    type        = "pty"
    target_type = "serial"
    target_port = "0"
  }

  xml {
    xslt = templatefile("${path.module}/domain.xslt.tftpl", {
      log      = var.logs == "" ? "" : "${var.logs}/${each.key}.log"
      emulated = var.domain_type == "qemu"
    })
  }

  # Apply starts machines that stand still and makes those that are missing. It
  # makes one anew when its seed or its disk is replaced, and only then.
  lifecycle {
    ignore_changes       = [cmdline, cpu, initrd, kernel, memory, type, vcpu, xml]
    replace_triggered_by = [libvirt_combustion.seed[each.key], libvirt_volume.root[each.key]]
  }
}
