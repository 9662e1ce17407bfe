// Package cluster proves that losing a machine is not an event: three servers
// and three clients, each with a network, folders and processes of its own on
// one host, made and bootstrapped as real machines are, run the production job
// files under load, with displays connected, while parts of them are killed, cut
// off, drained and filled. It needs root, and leaves nothing on the host. Run it
// with make e2e-cluster, one scenario with make e2e-cluster RUN=KillMachine.
package cluster
