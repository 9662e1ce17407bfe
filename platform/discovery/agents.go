package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/hashicorp/consul/api"
)

// NewClient makes a client of the first of several Consul agents that answers;
// cfg has everything but the address. An agent stays in use until it does not
// answer; then the next one is asked, round and round. What a request asks for
// is sent again for that, so every one must be fit to be done twice: those of
// this module are. What was registered at one agent is not known to the next:
// Registered notices and registers again.
func NewClient(cfg api.Config, addresses ...string) (*api.Client, error) {
	if len(addresses) == 0 {
		return nil, errors.New("no Consul agent is named")
	}
	// Clone gives a transport without TLS settings empty ones, and NewClient takes
	// what cfg and the environment say of TLS only where there are none.
	plain := cfg.Transport != nil && cfg.Transport.TLSClientConfig == nil
	pool := &agents{}
	for _, address := range addresses {
		one := cfg
		one.Address, one.HttpClient = address, nil
		if cfg.Transport != nil {
			one.Transport = cfg.Transport.Clone() // which NewClient changes for a socket
			if plain {
				one.Transport.TLSClientConfig = nil
			}
		}
		if _, err := api.NewClient(&one); err != nil {
			return nil, fmt.Errorf("make a client of the Consul agent at %s: %w", address, err)
		}
		pool.list = append(pool.list, agent{scheme: one.Scheme, host: one.Address, transport: one.HttpClient.Transport})
	}
	first := pool.list[0]
	cfg.Address, cfg.Scheme, cfg.Transport = first.host, first.scheme, nil
	cfg.HttpClient = &http.Client{Transport: pool}
	client, err := api.NewClient(&cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client of Consul: %w", err)
	}
	return client, nil
}

// agents sends requests to one of several agents.
type agents struct {
	list    []agent
	current atomic.Int64 // counts up; the agent in use is list[current % len]
}

type agent struct {
	scheme, host string
	transport    http.RoundTripper
}

// RoundTrip implements http.RoundTripper. An answer of any status is an answer.
func (a *agents) RoundTrip(r *http.Request) (*http.Response, error) {
	var errs []error
	for range a.list {
		turn := a.current.Load()
		using := a.list[turn%int64(len(a.list))]
		request := r.Clone(r.Context())
		request.URL.Scheme, request.URL.Host, request.Host = using.scheme, using.host, using.host
		if len(errs) > 0 && r.Body != nil && r.Body != http.NoBody {
			if r.GetBody == nil {
				break
			}
			body, err := r.GetBody()
			if err != nil {
				return nil, errors.Join(append(errs, err)...)
			}
			request.Body = body
		}
		response, err := using.transport.RoundTrip(request)
		if err == nil {
			return response, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", using.host, err))
		if errors.Is(r.Context().Err(), context.Canceled) {
			break // which says nothing of the agent
		}
		// Whoever fails at the same agent at the same time moves on only once.
		a.current.CompareAndSwap(turn, turn+1)
		if r.Context().Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}
