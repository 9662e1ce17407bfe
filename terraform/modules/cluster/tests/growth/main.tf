# The same cluster with one, two and four clients, for comparison.
module "cluster" {
  source   = "../.."
  for_each = { one = 1, two = 2, four = 4 }

  name              = "test"
  network           = "10.77.0.0/24"
  pools             = { client = { count = each.value, first_host = 101, placements = ["edge", "services"], first_placements = ["data"] } }
  keys              = "./tests/keys"
  operator_networks = ["10.77.0.1/32"]
  interface         = "eth0"
  static_addresses  = true
}

output "fingerprints" {
  description = "Fingerprints of the machines of each cluster."
  value       = { for name, c in module.cluster : name => c.fingerprints }
}
