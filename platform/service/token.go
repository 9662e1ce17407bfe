package service

import (
	"errors"
	"net/http"
	"os"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// errNoToken ends a process that cannot get into the mesh.
var errNoToken = errors.New("no certificate without a token of Consul's, and Nomad has given this task none: an allocation gets one when it is placed, " +
	"and lacks it when it is started again after its machine was; it has to fail, so that it is placed again")

// tokenTry is how often Consul's agent is asked that does not answer yet.
const tokenTry = time.Second

// watchToken fails the service when it can never get a certificate: without a
// token, where Consul wants one, in an allocation that Nomad recovered (Nomad's issue
// 27824). It returns when that is known, or when the service ends.
func (s *Service) watchToken() {
	if s.cfg.Mesh != MeshNative || !s.cfg.underNomad() || s.cfg.ConsulTokenFile != "" || os.Getenv("CONSUL_HTTP_TOKEN") != "" {
		return
	}
	for {
		_, _, err := s.consul.Agent().ConnectCALeaf(s.cfg.Name, (&consul.QueryOptions{}).WithContext(s.life))
		var refused consul.StatusError
		switch {
		case err == nil:
			return
		case errors.As(err, &refused) && refused.Code == http.StatusForbidden:
			s.fail(errNoToken)
			return
		}
		timer := time.NewTimer(tokenTry)
		select {
		case <-timer.C:
		case <-s.life.Done():
			timer.Stop()
			return
		}
	}
}
