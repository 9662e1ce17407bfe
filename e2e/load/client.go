package load

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// ServedBy is the response header that names the instance that answered.
const ServedBy = "x-served-by"

// deadPeer is how long a gateway's machine may leave bytes unacknowledged, or a
// connection unmade, before its clients take it for dead and go to another.
const deadPeer = 2 * time.Second

// dialer makes connections that end soon after their peer's machine has, also when
// it had acknowledged a request and only its answer is missing.
func dialer() *net.Dialer {
	return &net.Dialer{
		Timeout: deadPeer, Control: giveUpOn(deadPeer),
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadPeer / 2, Interval: deadPeer / 2, Count: 2},
	}
}

// retryPolicy is what any client of the gateways should have: they are two, and
// a call declared idempotent may be sent again to the other one.
const retryPolicy = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "marquee.account.v1.AccountService", "method": "GetAccount"},
      {"service": "marquee.account.v1.AccountService", "method": "GetSigningKeys"},
      {"service": "marquee.account.v1.AccountService", "method": "SignUp"},
      {"service": "marquee.order.v1.OrderService"},
      {"service": "marquee.order.v1.CreativeService"},
      {"service": "marquee.order.v1.WalletService"},
      {"service": "marquee.echo.v1.EchoService", "method": "Echo"}
    ],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.02s", "maxBackoff": "0.2s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// DialGRPC connects to the gateways' gRPC doors, addresses as host:port, the
// way a client should: all of them, round robin, repeating idempotent calls.
func DialGRPC(addresses ...string) (*grpc.ClientConn, error) {
	conn, _, err := dialGRPC(addresses)
	return conn, err
}

// DialGRPCOnce is DialGRPC without repeating, for who wants to hear what each
// call was told.
func DialGRPCOnce(addresses ...string) (*grpc.ClientConn, error) {
	conn, _, err := dialGRPC(addresses, grpc.WithDisableRetry())
	return conn, err
}

// DialGRPCFollowing is DialGRPC to gateways that come and go: set says which are
// there from then on.
func DialGRPCFollowing(addresses ...string) (conn *grpc.ClientConn, set func(addresses ...string), err error) {
	return dialGRPC(addresses)
}

func dialGRPC(addresses []string, options ...grpc.DialOption) (*grpc.ClientConn, func(...string), error) {
	gateways := manual.NewBuilderWithScheme("gateways")
	gateways.InitialState(stateOf(addresses))
	tcp := dialer()
	conn, err := grpc.NewClient("gateways:///all", append(options,
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return tcp.DialContext(ctx, "tcp", address)
		}),
		grpc.WithResolvers(gateways),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(retryPolicy),
		// Turns on TCP_USER_TIMEOUT too. No more often than the gateways bear.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: deadPeer}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}, MinConnectTimeout: time.Second}))...)
	return conn, func(addresses ...string) { gateways.UpdateState(stateOf(addresses)) }, err
}

func stateOf(addresses []string) resolver.State {
	state := resolver.State{}
	for _, a := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a})
	}
	return state
}

// GRPC makes an Op of a unary call; call gets an option that collects who served it.
func GRPC(name string, call func(ctx context.Context, opts ...grpc.CallOption) error) Op {
	return Op{Name: name, Call: func(ctx context.Context) (string, error) {
		var header metadata.MD
		err := call(ctx, grpc.Header(&header))
		if by := header.Get(ServedBy); len(by) > 0 {
			return by[0], err
		}
		return "", err
	}}
}

// REST is a client of the gateways' HTTP doors that holds all their addresses.
type REST struct {
	bases atomic.Pointer[[]*base]
	http  *http.Client
	next  atomic.Uint64
}

// base is the HTTP door of one gateway.
type base struct {
	url string
	// rests is until when calls go elsewhere, in Unix nanoseconds, as it could
	// not be reached; 0 when it was reached last.
	rests atomic.Int64
}

// restTime is how long a gateway that could not be reached is left alone; then
// one call tries it.
const restTime = time.Second

// usable says whether a call should try this one first.
func (b *base) usable(now time.Time) bool {
	until := b.rests.Load()
	return until == 0 || until <= now.UnixNano() && b.rests.CompareAndSwap(until, now.Add(restTime).UnixNano())
}

// NewREST makes a client; bases are URLs such as http://127.0.0.1:8080.
func NewREST(bases ...string) *REST {
	c := &REST{http: &http.Client{Transport: &http.Transport{
		DialContext:         dialer().DialContext,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     30 * time.Second,
	}}}
	c.Set(bases...)
	return c
}

// Set says which gateways are there from then on; of those that stay it is
// remembered which rest. Calls under way go on where they are.
func (c *REST) Set(bases ...string) {
	known := map[string]*base{}
	if last := c.bases.Load(); last != nil {
		for _, b := range *last {
			known[b.url] = b
		}
	}
	now := make([]*base, len(bases))
	for i, url := range bases {
		if now[i] = known[url]; now[i] == nil {
			now[i] = &base{url: url}
		}
	}
	c.bases.Store(&now)
}

// pick is the next gateway in turn that is not resting and was not asked before;
// or the next that was not asked, or that could be reached last, or just the next.
func (c *REST) pick(asked []*base) *base {
	bases := *c.bases.Load()
	first := c.next.Add(1)
	now := time.Now()
	next := bases[first%uint64(len(bases))]
	var unasked, reached *base
	for i := range uint64(len(bases)) {
		b := bases[(first+i)%uint64(len(bases))]
		switch before := slices.Contains(asked, b); {
		case !before && b.usable(now):
			return b
		case !before && unasked == nil:
			unasked = b
		case before && reached == nil && b.rests.Load() == 0:
			reached = b
		}
	}
	return cmp.Or(unasked, reached, next)
}

// Close ends idle connections.
func (c *REST) Close() { c.http.CloseIdleConnections() }

// Request is one REST call.
type Request struct {
	Method, Path, Token string
	Body                any // marshalled to JSON unless nil
	// Idempotent calls are repeated on another gateway when one cannot be
	// reached or says 502, 503 or 504.
	Idempotent bool
}

// ProblemError is a response that is not a success.
type ProblemError struct {
	HTTPStatus int
	RetryAfter string // the header of that name
	Body       []byte
}

func (p *ProblemError) Error() string { return fmt.Sprintf("HTTP %d: %s", p.HTTPStatus, p.Body) }

// Do sends the request and decodes the JSON answer into out unless it is nil.
// It returns the instance that served it. An answer other than 2xx is a *ProblemError.
func (c *REST) Do(ctx context.Context, r Request, out any) (servedBy string, err error) {
	var body []byte
	if r.Body != nil {
		if body, err = json.Marshal(r.Body); err != nil {
			return "", fmt.Errorf("marshal the body: %w", err)
		}
	}
	tries := 1
	if r.Idempotent {
		tries = 4
	}
	var asked []*base
	var failed []string // tries before the last, for who asks why
	defer func() {
		if err != nil && len(failed) > 0 {
			err = fmt.Errorf("%w (tried before: %s)", err, strings.Join(failed, "; "))
		}
	}()
	for try := range tries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return "", errors.Join(err, ctx.Err())
			case <-time.After(20 * time.Millisecond << try):
			}
		}
		b := c.pick(asked)
		asked = append(asked, b)
		servedBy, err = c.once(ctx, b.url, r, body, out)
		if unreached := (*url.Error)(nil); errors.As(err, &unreached) && ctx.Err() == nil {
			b.rests.Store(time.Now().Add(restTime).UnixNano())
		} else {
			b.rests.Store(0)
		}
		if ctx.Err() != nil || !repeatable(err) || try == tries-1 {
			return servedBy, err
		}
		failed = append(failed, b.url+": "+err.Error())
	}
	return servedBy, err
}

func (c *REST) once(ctx context.Context, base string, r Request, body []byte, out any) (string, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, base+r.Path, bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	by := resp.Header.Get(ServedBy)
	if resp.StatusCode/100 != 2 {
		return by, &ProblemError{HTTPStatus: resp.StatusCode, RetryAfter: resp.Header.Get("Retry-After"), Body: answer}
	}
	if out == nil {
		return by, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return by, fmt.Errorf("decode %q: %w", answer, err)
	}
	return by, nil
}

// repeatable says whether another gateway may succeed where this one failed
// while there is time left; a machine that is gone fails with a timeout, too.
func repeatable(err error) bool {
	if err == nil {
		return false
	}
	if p := (*ProblemError)(nil); errors.As(err, &p) {
		return p.HTTPStatus == http.StatusBadGateway || p.HTTPStatus == http.StatusServiceUnavailable || p.HTTPStatus == http.StatusGatewayTimeout
	}
	return true
}
