variable "name" {
  description = "The environment's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", var.name))
    error_message = "name ${jsonencode(var.name)}: lower-case letters, digits and dashes, a letter first, at most 32."
  }
}

variable "network" {
  description = "The machines' network (CIDR). The first address is the gateway's, servers have the 11th and following."
  type        = string

  validation {
    condition     = can(cidrhost(var.network, 0)) && can(cidrnetmask(var.network))
    error_message = "network ${jsonencode(var.network)} is not an IPv4 network: give a CIDR, for example 10.77.0.0/24."
  }
  validation {
    condition     = !can(cidrhost(var.network, 0)) || try(cidrhost(var.network, 0) == split("/", var.network)[0], false)
    error_message = "network ${jsonencode(var.network)} has host bits: write it as ${try("${cidrhost(var.network, 0)}/${split("/", var.network)[1]}", "a network")}."
  }
  validation {
    condition     = try(tonumber(split("/", var.network)[1]) >= 16 && tonumber(split("/", var.network)[1]) <= 24, true)
    error_message = "network ${jsonencode(var.network)} must have a mask from /16 to /24."
  }
  validation {
    condition = anytrue([for private in ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"] :
    try(cidrhost("${cidrhost(var.network, 0)}/${split("/", private)[1]}", 0) == cidrhost(private, 0), true)])
    error_message = "network ${jsonencode(var.network)} is not private: take it from 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
}

variable "other_networks" {
  description = "Networks (CIDR) that the machines' network must not overlap: those that the machines or their host must reach."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for c in var.other_networks : can(cidrhost(c, 0)) && can(cidrnetmask(c))])
    error_message = "other_networks must be IPv4 CIDRs, not ${jsonencode(var.other_networks)}."
  }
  validation {
    # Two networks overlap when the narrower one lies in the wider one. Nomad's
    # bridge network is on every machine that runs jobs.
    condition = alltrue([
      for other in concat(["172.26.64.0/20"], var.other_networks) : try(
        cidrhost("${cidrhost(var.network, 0)}/${min(split("/", var.network)[1], split("/", other)[1])}", 0) !=
        cidrhost("${cidrhost(other, 0)}/${min(split("/", var.network)[1], split("/", other)[1])}", 0),
      true)
    ])
    error_message = "network ${var.network} overlaps one of ${join(", ", concat(["172.26.64.0/20 (Nomad's bridge)"], var.other_networks))}: choose another network."
  }
}

variable "servers" {
  description = "How many servers: 1, 3, 5 or 7."
  type        = number
  default     = 3

  validation {
    condition     = contains([1, 3, 5, 7], var.servers)
    error_message = "servers is ${var.servers}: an even number is no safer than one less, so give 1, 3, 5 or 7."
  }
}

variable "pools" {
  description = <<-EOT
    Machines that run jobs, by pool. Machines are named <pool>-1, <pool>-2 and so on, so that growing a pool leaves the others alone.
    - count: how many.
    - first_host: number of the first machine's address in the network; the others follow.
    - placements: edge, services, data: what may be placed on each of them.
    - first_placements: what only the first one takes besides.
    - node_pool: Nomad's node pool.
  EOT
  type = map(object({
    count            = number
    first_host       = number
    placements       = optional(set(string), [])
    first_placements = optional(set(string), [])
    node_pool        = optional(string, "default")
  }))

  validation {
    condition     = alltrue([for name in keys(var.pools) : can(regex("^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", name)) && name != "server"])
    error_message = "pools has a name that cannot be a host's: lower-case letters, digits and dashes, and not server: ${join(", ", keys(var.pools))}."
  }
  validation {
    condition     = alltrue([for p in values(var.pools) : p.count >= 0 && p.count <= 100 && floor(p.count) == p.count])
    error_message = "pools: count must be from 0 to 100: ${join(", ", [for name, p in var.pools : "${name} ${p.count}" if p.count < 0 || p.count > 100 || floor(p.count) != p.count])}."
  }
  validation {
    condition     = alltrue([for p in values(var.pools) : length(setsubtract(setunion(p.placements, p.first_placements), ["edge", "services", "data"])) == 0])
    error_message = "pools: placements are edge, services and data, not ${join(", ", flatten([for p in values(var.pools) : setsubtract(setunion(p.placements, p.first_placements), ["edge", "services", "data"])]))}."
  }
  validation {
    condition = length(distinct(concat(
      range(11, 11 + var.servers), flatten([for p in values(var.pools) : [for i in range(p.count) : p.first_host + i]]),
    ))) == var.servers + sum(concat([0], [for p in values(var.pools) : p.count]))
    error_message = "pools: two machines would have the same address: set first_host farther apart, and past the servers' (11 to ${10 + var.servers})."
  }
  validation {
    condition     = alltrue([for p in values(var.pools) : p.count == 0 || (p.first_host > 1 && can(cidrhost(var.network, p.first_host + p.count)))])
    error_message = "pools: the machines do not fit into ${var.network}: choose a wider network or a lower first_host."
  }
}

variable "keys" {
  description = "Folder that `marquee keys new` fills: CA, certificates, tokens, gossip keys, the operators' public ssh key."
  type        = string

  validation {
    condition     = alltrue([for f in local.key_files : fileexists("${var.keys}/${f}")])
    error_message = "${var.keys} lacks ${join(", ", [for f in local.key_files : f if !fileexists("${var.keys}/${f}")])}: run `marquee keys --env ${var.name} new ${join(" ", [for name, m in local.machines : "--node ${name}=${m.role}"])}` first."
  }
  validation {
    condition     = try(fileexists("${var.keys}/secrets.json") ? can(jsondecode(file("${var.keys}/secrets.json"))) : true, false)
    error_message = "${var.keys}/secrets.json is not JSON: restore it from a copy; `marquee keys new` never changes what is there."
  }
  validation {
    condition = !can(jsondecode(file("${var.keys}/secrets.json"))) || alltrue(concat(
      [for t in local.token_names : try(jsondecode(file("${var.keys}/secrets.json"))[t], "") != ""],
      [for name in keys(local.machines) : try(jsondecode(file("${var.keys}/secrets.json")).nodes[name], "") != ""],
    ))
    error_message = "${var.keys}/secrets.json lacks one of ${join(", ", local.token_names)} or the token of one of ${join(", ", keys(local.machines))}: run `marquee keys --env ${var.name} new ${join(" ", [for name, m in local.machines : "--node ${name}=${m.role}"])}` first."
  }
}

variable "operator_networks" {
  description = "Networks (CIDR) from which operators reach ssh on every machine, and on servers the APIs of Nomad (4646), Consul (8501) and the artifact store (4700)."
  type        = list(string)

  validation {
    condition     = length(var.operator_networks) > 0
    error_message = "operator_networks is empty: nobody could reach the cluster. Name the networks that operators come from."
  }
}

variable "interface" {
  description = "Network interface of the machines' addresses; \"\" when the image decides its name."
  type        = string
  default     = ""
}

variable "static_addresses" {
  description = "Machines configure their address themselves instead of asking DHCP. Needs interface."
  type        = bool
  default     = false
}

variable "name_servers" {
  description = "Name servers (addresses) of machines with static addresses; none in a network that leads nowhere."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for a in var.name_servers : can(cidrhost("${a}/32", 0))])
    error_message = "name_servers must be IPv4 addresses, not ${jsonencode(var.name_servers)}."
  }
}

variable "tuned" {
  description = "Notice a dead machine in about a second instead of five; not under emulation."
  type        = bool
  default     = true
}

variable "ntp_servers" {
  description = "Time servers that the cluster's servers ask."
  type        = list(string)
  default     = []
}

variable "programs" {
  description = "Programs that the image does not have: consul, nomad, artifactd to URL and SHA-256."
  type = map(object({
    url    = string
    sha256 = string
  }))
  default = {}
}

variable "extra_packages" {
  description = "Debian packages that cloud-init installs besides those that every machine has."
  type        = list(string)
  default     = []
}

variable "data_jobs" {
  description = "Jobs whose data machines with the placement data keep, for example account-db: a folder and a host volume each."
  type        = list(string)
  default     = []
}

variable "data_devices" {
  description = "Block device of a machine's volumes, by machine; machines without one keep them on the root disk."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.data_devices), keys(local.machines))) == 0
    error_message = "data_devices has ${join(", ", setsubtract(keys(var.data_devices), keys(local.machines)))}, which is none of the machines ${join(", ", keys(local.machines))}."
  }
}
