# One machine, everything on loopback: what `marquee up` runs. The job files'
# own defaults say the same; production.hcl is for clusters of
# machines. Given as
#
#   nomad job run -var-file=nomad-jobs/vars/local.hcl nomad-jobs/account.nomad.hcl
#
# Only variables that every job file declares may stand here.

datacenters  = ["*"]
environment  = "development"
mode         = "development"
driver       = "raw_exec"
host_network = "loopback"
