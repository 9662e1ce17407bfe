package discovery

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

const (
	// MinTTL is the shortest TTL that Register accepts: below it a busy machine
	// drops out of discovery.
	MinTTL     = time.Second
	defaultTTL = 10 * time.Second
	// reapAfter is Consul's minimum for removing what stays critical.
	reapAfter = time.Minute
)

// Registration is one instance of a service as others shall see it.
type Registration struct {
	// Service is the Consul service name.
	Service string
	// ID is unique among all instances; by default it is made of the service,
	// the host, the process id and a random part.
	ID string
	// Address is the host:port others dial; see AdvertiseAddress.
	Address string
	// Environment must not be empty: its tag is added to Tags.
	Environment string
	Tags        []string
	Meta        map[string]string
	// ConnectNative says that the process speaks the mesh's TLS itself.
	ConnectNative bool
	// TTL is how long the instance stays in discovery after its process was
	// killed (default 10 s, at least MinTTL). The heartbeat is a third of it.
	TTL time.Duration
	// Log may be nil.
	Log hclog.Logger
}

// Registered is an instance that is registered and kept alive. Its methods may be
// called from any goroutine.
type Registered struct {
	client  *api.Client
	service *api.AgentServiceRegistration
	ttl     time.Duration
	log     hclog.Logger

	ready   atomic.Bool
	changed chan struct{}
	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once
}

// Register registers an instance, not ready at first, and keeps it alive until
// Deregister: it is registered again when the agent has forgotten it. While the
// agent cannot be reached Register tries until ctx ends; what the agent refuses
// (400, 403) is an error at once.
func Register(ctx context.Context, client *api.Client, r Registration) (*Registered, error) {
	service, ttl, err := r.service()
	if err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	if r.Log == nil {
		r.Log = hclog.NewNullLogger()
	}
	registered := &Registered{
		client: client, service: service, ttl: ttl, log: r.Log.With("instance", service.ID),
		changed: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	for attempt := 1; ; attempt++ {
		if err = registered.register(ctx); err == nil {
			break
		}
		if refused(err) {
			return nil, err
		}
		registered.log.Warn("registration failed; trying again", "attempt", attempt, "error", err)
		if !pause(ctx, registered.retryDelay(attempt)) {
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
	go registered.heartbeat()
	return registered, nil
}

// ID is the instance's id.
func (r *Registered) ID() string { return r.service.ID }

// SetReady puts the instance into discovery or takes it out. It does not wait:
// the agent is told at once, and again until it has heard.
func (r *Registered) SetReady(ready bool) {
	if r.ready.Swap(ready) == ready {
		return
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Deregister ends the heartbeat, waits for it and removes the instance from the
// agent. Only the first call does anything. When it fails the instance leaves
// discovery by itself after the TTL.
func (r *Registered) Deregister(ctx context.Context) error {
	var err error
	r.once.Do(func() { err = r.deregister(ctx) })
	return err
}

func (r *Registered) deregister(ctx context.Context) error {
	close(r.stop)
	// A heartbeat that is under way could otherwise register again afterwards.
	select {
	case <-r.stopped:
	case <-ctx.Done():
		return fmt.Errorf("deregister %s: wait for the heartbeat: %w", r.service.ID, ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	err := r.client.Agent().ServiceDeregisterOpts(r.service.ID, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil && statusCode(err) != http.StatusNotFound {
		return fmt.Errorf("deregister %s: %w", r.service.ID, err)
	}
	return nil
}

// heartbeat keeps the TTL check alive and its status right until stop.
func (r *Registered) heartbeat() {
	defer close(r.stopped)
	failures := 0
	for {
		delay := r.ttl / 3
		if err := r.beat(); err != nil {
			failures++
			r.log.Warn("heartbeat failed; trying again", "attempt", failures, "error", err)
			delay = r.retryDelay(failures)
		} else {
			failures = 0
		}
		timer := time.NewTimer(delay)
		select {
		case <-r.stop:
			timer.Stop()
			return
		case <-r.changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (r *Registered) beat() error {
	// Not the caller's context: a request cut off half-way may still take effect.
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout())
	defer cancel()
	err := r.client.Agent().UpdateTTLOpts(r.service.Check.CheckID, "", r.status(), (&api.QueryOptions{}).WithContext(ctx))
	switch statusCode(err) {
	case http.StatusNotFound, http.StatusInternalServerError:
		// The agent does not know the check: it lost its data, or somebody
		// removed the instance, or it was critical for too long.
		r.log.Info("the agent has forgotten this instance; registering again", "error", err)
		return r.register(ctx)
	}
	if err != nil {
		return fmt.Errorf("update the check of %s: %w", r.service.ID, err)
	}
	return nil
}

func (r *Registered) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	service := *r.service
	check := *service.Check
	check.Status = r.status()
	service.Check = &check
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := r.client.Agent().ServiceRegisterOpts(&service, opts); err != nil {
		return fmt.Errorf("register %s: %w", r.service.ID, err)
	}
	return nil
}

func (r *Registered) status() string {
	if r.ready.Load() {
		return api.HealthPassing
	}
	return api.HealthCritical
}

// timeout leaves room for another attempt within the TTL.
func (r *Registered) timeout() time.Duration { return max(r.ttl/3, MinTTL) }

// retryDelay keeps an agent that comes back within the TTL from missing a beat.
func (r *Registered) retryDelay(attempt int) time.Duration {
	return jitter(min(100*time.Millisecond<<min(attempt-1, 10), r.ttl/3))
}

// service checks a registration and turns it into Consul's.
func (r Registration) service() (*api.AgentServiceRegistration, time.Duration, error) {
	if !serviceName.MatchString(r.Service) {
		return nil, 0, fmt.Errorf("%q is not a service name", r.Service)
	}
	if r.Environment == "" {
		return nil, 0, errors.New("the environment is empty: its tag keeps environments apart")
	}
	host, number, err := net.SplitHostPort(r.Address)
	if err != nil {
		return nil, 0, fmt.Errorf("the address %q is not host:port: %w", r.Address, err)
	}
	port, err := strconv.Atoi(number)
	if err != nil || port < 1 || port > 65535 {
		return nil, 0, fmt.Errorf("%q in the address %q is not a port from 1 to 65535", number, r.Address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return nil, 0, fmt.Errorf("nobody can dial the address %q: give the host others reach", r.Address)
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = defaultTTL
	}
	if ttl < MinTTL {
		return nil, 0, fmt.Errorf("the TTL %s is shorter than %s", ttl, MinTTL)
	}
	id := r.ID
	if id == "" {
		if id, err = newID(r.Service); err != nil {
			return nil, 0, err
		}
	}
	service := &api.AgentServiceRegistration{
		ID: id, Name: r.Service, Address: host, Port: port, Meta: maps.Clone(r.Meta),
		Tags: slices.Compact(slices.Sorted(slices.Values(append([]string{EnvironmentTag(r.Environment)}, r.Tags...)))),
		Check: &api.AgentServiceCheck{
			CheckID: id + "-ttl", Name: "heartbeat", TTL: ttl.String(),
			DeregisterCriticalServiceAfter: max(reapAfter, 3*ttl).String(),
		},
	}
	if r.ConnectNative {
		service.Connect = &api.AgentServiceConnect{Native: true}
	}
	return service, ttl, nil
}

func newID(service string) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("make an instance id: %w", err)
	}
	random := make([]byte, 4)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("make an instance id: %w", err)
	}
	return fmt.Sprintf("%s-%s-%d-%s", service, host, os.Getpid(), hex.EncodeToString(random)), nil
}

// statusCode is the HTTP status of an agent's error, 0 for any other.
func statusCode(err error) int {
	var status api.StatusError
	if errors.As(err, &status) {
		return status.Code
	}
	return 0
}

func refused(err error) bool {
	code := statusCode(err)
	return code == http.StatusBadRequest || code == http.StatusForbidden
}
