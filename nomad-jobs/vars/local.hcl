# One machine, everything on loopback: what `marquee up` runs. The job files'
# own defaults say the same; an environment of its own is a copy of this file
# with other values, given as
#
#   nomad job run -var-file=nomad-jobs/vars/local.hcl nomad-jobs/account.nomad.hcl
#
# Only variables that every job file declares may stand here.

datacenters  = ["*"]
environment  = "development"
mode         = "development"
driver       = "raw_exec"
host_network = "loopback"
