# What the module makes of good input, without libvirt.
mock_provider "libvirt" {}

variables {
  name = "test"
  nodes = {
    server-1 = { role = "server", address = "10.77.0.11" }
    client-1 = { role = "client", address = "10.77.0.101", placements = ["edge", "services", "data"] }
  }
  seed_scripts = { server-1 = "seed of server-1", client-1 = "seed of client-1" }
  fingerprints = { server-1 = "one", client-1 = "two" }
  network      = "10.77.0.0/24"
  domain_type  = "qemu"
  # Any files do: a mocked provider reads none.
  image   = "./main.tf"
  kernel  = "./variables.tf"
  initrd  = "./outputs.tf"
  storage = "/var/lib/test"
  logs    = "/var/log/test"
  memory  = { server = 512, client = 768 }
}

run "made" {
  assert {
    condition     = { for name, d in libvirt_domain.machine : name => "${d.name} ${d.type} ${d.memory} ${d.cpu[0].mode}" } == { server-1 = "test-server-1 qemu 512 maximum", client-1 = "test-client-1 qemu 768 maximum" }
    error_message = "The machines are ${jsonencode({ for name, d in libvirt_domain.machine : name => "${d.name} ${d.type} ${d.memory} ${d.cpu[0].mode}" })}"
  }
  assert {
    condition     = { for name, d in libvirt_domain.machine : name => d.network_interface[0].mac } == { server-1 = "52:54:00:4D:00:0B", client-1 = "52:54:00:4D:00:65" }
    error_message = "The MAC addresses do not come from the addresses: a machine made again would have another one."
  }
  assert {
    condition     = alltrue([for name, d in libvirt_domain.machine : d.disk[0].volume_id == libvirt_volume.root[name].id && d.disk[1].volume_id == libvirt_combustion.seed[name].id])
    error_message = "The root disk is not the first and the seed the second."
  }
  assert {
    condition     = { for name, s in libvirt_combustion.seed : name => nonsensitive(s.content) } == { server-1 = "seed of server-1", client-1 = "seed of client-1" }
    error_message = "A machine has another one's seed."
  }
  assert {
    condition     = alltrue([for d in values(libvirt_domain.machine) : length(d.cmdline) == 1 && d.cmdline[0].root == "LABEL=root" && alltrue([for v in values(d.cmdline[0]) : v != ""])])
    error_message = "Kernel arguments would be read back differently: they must be one map with values."
  }
  assert {
    condition     = strcontains(libvirt_domain.machine["client-1"].xml[0].xslt, "<log file=\"/var/log/test/client-1.log\"") && strcontains(libvirt_domain.machine["client-1"].xml[0].xslt, "<tb-cache unit=\"MiB\">256</tb-cache>")
    error_message = "An emulated machine has no serial log, or takes 1 GB for translated code."
  }
  assert {
    condition     = libvirt_network.cluster.mode == "none" && !libvirt_network.cluster.dhcp[0].enabled && !libvirt_network.cluster.dns[0].enabled
    error_message = "The network is not isolated by default."
  }
  assert {
    condition     = length(output.outdated) == 0
    error_message = "New machines are outdated: ${join(" ", output.outdated)}"
  }
  assert {
    condition     = output.nodes["client-1"].log == "/var/log/test/client-1.log" && output.nodes["client-1"].domain == "test-client-1"
    error_message = "The output nodes is ${jsonencode(output.nodes)}"
  }
}

# Apply never changes a machine that runs: it says who is behind.
run "a_changed_machine_is_left_alone_and_named" {
  variables {
    seed_scripts    = { server-1 = "seed of server-1", client-1 = "another seed" }
    fingerprints    = { server-1 = "one", client-1 = "three" }
    image           = "./versions.tf"
    previous_images = ["./main.tf"]
    kernel          = "./outputs.tf"
    memory          = { server = 640, client = 1024 }
    cmdline         = { quiet = "1" }
  }

  assert {
    condition     = nonsensitive(libvirt_combustion.seed["client-1"].content) == "seed of client-1"
    error_message = "The seed of a machine that runs was replaced."
  }
  assert {
    condition     = libvirt_volume.root["client-1"].base_volume_id == libvirt_volume.image["main.tf"].id
    error_message = "The disk of a machine that runs was put on another image."
  }
  assert {
    condition     = libvirt_domain.machine["client-1"].kernel == "./variables.tf" && libvirt_domain.machine["server-1"].memory == 512 && !contains(keys(libvirt_domain.machine["server-1"].cmdline[0]), "quiet")
    error_message = "A machine that runs was defined anew."
  }
  assert {
    condition     = output.outdated == tolist(["client-1"])
    error_message = "outdated is ${jsonencode(output.outdated)}"
  }
}

run "a_new_machine_is_made_of_what_is_new" {
  variables {
    nodes = {
      server-1 = { role = "server", address = "10.77.0.11" }
      client-1 = { role = "client", address = "10.77.0.101" }
      client-2 = { role = "client", address = "10.77.0.102" }
    }
    seed_scripts    = { server-1 = "seed of server-1", client-1 = "another seed", client-2 = "seed of client-2" }
    fingerprints    = { server-1 = "one", client-1 = "three", client-2 = "four" }
    image           = "./versions.tf"
    previous_images = ["./main.tf"]
  }

  assert {
    condition     = libvirt_volume.root["client-2"].base_volume_id == libvirt_volume.image["versions.tf"].id && libvirt_volume.root["client-1"].base_volume_id == libvirt_volume.image["main.tf"].id
    error_message = "A new machine is not on the new image."
  }
  assert {
    condition     = output.outdated == tolist(["client-1"])
    error_message = "outdated is ${jsonencode(output.outdated)}"
  }
}

run "kvm_with_a_way_out" {
  command = plan

  variables {
    domain_type  = "kvm"
    network_mode = "nat"
    logs         = ""
    name         = "other"
  }

  assert {
    condition     = libvirt_network.cluster.dns[0].enabled && libvirt_network.cluster.mode == "nat"
    error_message = "Machines that reach other networks have no name server."
  }
  assert {
    condition     = output.nodes["client-1"].log == ""
    error_message = "A log is named that nobody writes."
  }
}
