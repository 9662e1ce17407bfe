// Package e2e proves the platform on a real Nomad and Consul cluster of its own,
// through its public doors: the tests beside this file are the scenarios. Run
// them with make e2e, or one with make e2e RUN=Failover. With MARQUEE_E2E_KEEP=1
// the cluster stays up afterwards, to be looked at with marquee --cluster e2e.
package e2e
