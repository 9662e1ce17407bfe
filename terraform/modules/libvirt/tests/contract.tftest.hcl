# Every bad input is refused, and by the variable that has it.
mock_provider "libvirt" {}

variables {
  name         = "test"
  nodes        = { server-1 = { role = "server", address = "10.77.0.11" } }
  seed_scripts = { server-1 = "seed of server-1" }
  fingerprints = { server-1 = "one" }
  network      = "10.77.0.0/24"
  image        = "./main.tf"
  kernel       = "./variables.tf"
  initrd       = "./outputs.tf"
  storage      = "/var/lib/test"
}

run "good" {
  command = plan

  assert {
    condition     = keys(libvirt_domain.machine) == ["server-1"]
    error_message = "Good input makes no machine."
  }
}

run "name_in_capitals" {
  command = plan

  variables {
    name = "Test"
  }
  expect_failures = [var.name]
}

run "no_machines" {
  command = plan

  variables {
    nodes        = {}
    seed_scripts = {}
    fingerprints = {}
  }
  expect_failures = [var.nodes]
}

run "unknown_role" {
  command = plan

  variables {
    nodes = { server-1 = { role = "worker", address = "10.77.0.11" } }
  }
  expect_failures = [var.nodes]
}

run "address_outside_of_the_network" {
  command = plan

  variables {
    nodes = { server-1 = { role = "server", address = "10.78.0.11" } }
  }
  expect_failures = [var.nodes]
}

run "machine_without_seed" {
  command = plan

  variables {
    seed_scripts = {}
  }
  expect_failures = [var.seed_scripts]
}

run "machine_without_fingerprint" {
  command = plan

  variables {
    fingerprints = {}
  }
  expect_failures = [var.fingerprints]
}

run "network_that_is_none" {
  command = plan

  variables {
    network = "10.77.0.0/33"
    nodes   = { server-1 = { role = "server", address = "10.77.0.11" } }
  }
  expect_failures = [var.network]
}

run "unknown_network_mode" {
  command = plan

  variables {
    network_mode = "bridge"
  }
  expect_failures = [var.network_mode]
}

run "bridge_name_too_long" {
  command = plan

  variables {
    bridge = "marquee-of-this-checkout"
  }
  expect_failures = [var.bridge]
}

run "unknown_domain_type" {
  command = plan

  variables {
    domain_type = "xen"
  }
  expect_failures = [var.domain_type]
}

run "no_image" {
  command = plan

  variables {
    image = "./nothing.qcow2"
  }
  expect_failures = [var.image]
}

run "no_previous_image" {
  command = plan

  variables {
    previous_images = ["./nothing.qcow2"]
  }
  expect_failures = [var.previous_images]
}

run "previous_image_of_the_same_name" {
  command = plan

  variables {
    previous_images = ["../cluster/main.tf"]
  }
  expect_failures = [var.previous_images]
}

run "no_kernel" {
  command = plan

  variables {
    kernel = "./nothing"
  }
  expect_failures = [var.kernel]
}

run "no_initrd" {
  command = plan

  variables {
    initrd = "./nothing"
  }
  expect_failures = [var.initrd]
}

run "bare_kernel_flag" {
  command = plan

  variables {
    cmdline = { quiet = "" }
  }
  expect_failures = [var.cmdline]
}

run "kernel_argument_with_blanks" {
  command = plan

  variables {
    cmdline = { init = "/bin/sh -x" }
  }
  expect_failures = [var.cmdline]
}

run "relative_storage" {
  command = plan

  variables {
    storage = "disks"
  }
  expect_failures = [var.storage]
}

run "relative_logs" {
  command = plan

  variables {
    logs = "logs"
  }
  expect_failures = [var.logs]
}

run "not_enough_memory" {
  command = plan

  variables {
    memory = { server = 256, client = 1024 }
  }
  expect_failures = [var.memory]
}

run "no_processor" {
  command = plan

  variables {
    cpus = 0
  }
  expect_failures = [var.cpus]
}

run "no_disk" {
  command = plan

  variables {
    disk = 0
  }
  expect_failures = [var.disk]
}
