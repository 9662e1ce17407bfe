// Package vms proves the way from nothing to a serving cluster of virtual
// machines and back: terraform apply, a deployment, sign-up and log-in through
// the edge, a machine destroyed under load and brought back, one drained and
// replaced for another key, one added and taken away, destroy. It uses the marquee
// command as people do. Run it with make e2e-vms.
package vms
