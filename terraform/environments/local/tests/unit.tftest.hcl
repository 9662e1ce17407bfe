# The environment as a whole, without libvirt. The keys are those of the tests
# of module cluster; any files serve as an image.
mock_provider "libvirt" {}

variables {
  keys    = "../../modules/cluster/tests/keys"
  image   = "./main.tf"
  kernel  = "./variables.tf"
  initrd  = "./outputs.tf"
  storage = "/var/lib/test"
}

run "made" {
  assert {
    condition = output.environment == {
      name    = "local", nomad_addr = "https://10.77.0.11:4646", consul_addr = "https://10.77.0.11:8501"
      ca_file = abspath("../../modules/cluster/tests/keys/ca.pem")
      servers = ["10.77.0.11", "10.77.0.12", "10.77.0.13"], edge = ["10.77.0.101", "10.77.0.102"], box = ""
    }
    error_message = "The environment is ${jsonencode(output.environment)}"
  }
  assert {
    condition     = { for name, n in output.nodes : name => join(" ", concat([n.role, n.address, n.node_pool], sort(n.placements))) } == { server-1 = "server 10.77.0.11 default", server-2 = "server 10.77.0.12 default", server-3 = "server 10.77.0.13 default", client-1 = "client 10.77.0.101 default data edge services", client-2 = "client 10.77.0.102 default edge services" }
    error_message = "The machines are ${jsonencode(output.nodes)}"
  }
  assert {
    condition     = length(output.outdated) == 0
    error_message = "New machines are outdated: ${join(" ", output.outdated)}"
  }
}

run "one_client_more" {
  variables {
    clients = 3
  }

  assert {
    condition     = length(output.nodes) == 6 && length(output.outdated) == 0
    error_message = "With one client more ${jsonencode(output.outdated)} would be made differently."
  }
}

run "more_servers_are_told_to_all_when_they_are_replaced" {
  variables {
    servers = 1
  }

  assert {
    condition     = output.outdated == tolist(["client-1", "client-2", "server-1"])
    error_message = "With other servers ${jsonencode(output.outdated)} are outdated."
  }
}

# What the environment refuses itself; its modules refuse the rest.
run "libvirt_of_another_hypervisor" {
  command = plan

  variables {
    libvirt_uri = "xen:///system"
  }
  expect_failures = [var.libvirt_uri]
}
