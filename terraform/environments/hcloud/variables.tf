variable "name" {
  description = "The environment's name, which names everything in the project."
  type        = string
  default     = "hcloud"
}

variable "keys" {
  description = "Folder that `marquee keys new` fills, for example .marquee/environments/hcloud/keys."
  type        = string
}

variable "servers" {
  description = "How many servers: 1, 3, 5 or 7."
  type        = number
  default     = 3
}

variable "edge" {
  description = "How many machines take calls from outside."
  type        = number
  default     = 2
}

variable "services" {
  description = "How many machines run services."
  type        = number
  default     = 3
}

variable "data" {
  description = "How many machines run databases, each with a volume."
  type        = number
  default     = 1

  validation {
    condition     = var.data >= 1
    error_message = "data is ${var.data}: a database needs a machine."
  }
}

variable "server_types" {
  description = "Server type of new machines by pool: server, edge, services, data."
  type        = map(string)
  default     = { server = "cx22", edge = "cx22", services = "cx32", data = "cx32" }
}

variable "network" {
  description = "The machines' private network (CIDR, /16 to /22): servers have the 11th address and following, edge machines the 31st, data machines the 151st, services the 301st."
  type        = string
  default     = "10.80.0.0/22"
}

variable "other_networks" {
  description = "Networks (CIDR) that the machines' network must not overlap, for example an office's that is routed to it."
  type        = list(string)
  default     = []
}

variable "operator_networks" {
  description = "Networks (IPv4 CIDR) from which operators reach ssh, and Nomad, Consul and the artifact store on servers."
  type        = list(string)
}

variable "location" {
  description = "Location of everything: fsn1, nbg1, hel1, ash, hil or sin."
  type        = string
  default     = "fsn1"
}

variable "image" {
  description = "Image of new machines: debian-12, or the number of a snapshot that has the programs."
  type        = string
  default     = "debian-12"
}

variable "programs" {
  description = "Where machines fetch what the image lacks: consul, nomad and artifactd to https URL and SHA-256."
  type = map(object({
    url    = string
    sha256 = string
  }))
  default = {}

  validation {
    condition     = var.image != "debian-12" || length(setsubtract(["artifactd", "consul", "nomad"], keys(var.programs))) == 0
    error_message = "programs lacks ${join(", ", setsubtract(["artifactd", "consul", "nomad"], keys(var.programs)))}, which debian-12 does not have: give URL and SHA-256, or the number of a snapshot as image."
  }
}

variable "data_jobs" {
  description = "Jobs whose data the machines for databases keep: the databases of nomad-jobs/services.hcl, and what else keeps data there."
  type        = list(string)
  default     = ["account-db", "device-db", "nats", "order-db"]
}

variable "data_volume" {
  description = "GiB of the volume of each machine with databases."
  type        = number
  default     = 20
}

variable "delete_protection" {
  description = "Refuse to delete volumes with data, the load balancer and the network until this is false."
  type        = bool
  default     = true
}

variable "public_addresses" {
  description = "Machines have public addresses, behind a firewall that lets operators in alone."
  type        = bool
  default     = true
}

variable "load_balancer_type" {
  description = "Type of the load balancer: lb11, lb21 or lb31."
  type        = string
  default     = "lb11"
}

variable "certificates" {
  description = "Numbers of the project's certificates that the load balancer shows on port 443."
  type        = list(number)
}

variable "ntp_servers" {
  description = "Time servers that the cluster's servers ask."
  type        = list(string)
  default     = ["ntp1.hetzner.de", "ntp2.hetzner.com", "ntp3.hetzner.net"]
}
