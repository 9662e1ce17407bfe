package scenario

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// Password is that of all accounts that the scenarios make.
const Password = "a pass phrase of e2e"

// Accounts is load on the account service through both doors of all gateways. It
// remembers what each sign-up was answered.
type Accounts struct {
	// Once has calls over REST not repeated by the client; over gRPC that is the
	// connection's to say.
	Once bool

	rest   *load.REST
	client accountv1.AccountServiceClient
	prefix string
	next   atomic.Int64
	waited atomic.Int64 // sign-ups that were told to come back, and did

	mu      sync.Mutex
	answers map[string]string // account id by request_id
	failed  []string          // request_ids: whether they were done is not known
}

// NewAccounts makes load with these clients, which stay the caller's.
func NewAccounts(rest *load.REST, conn *grpc.ClientConn) *Accounts {
	return &Accounts{
		rest: rest, client: accountv1.NewAccountServiceClient(conn),
		prefix: fmt.Sprintf("e2e-%d", time.Now().UnixNano()), answers: map[string]string{},
	}
}

// SignUp makes an account whose name ends with who, which is nobody else's.
func (a *Accounts) SignUp(ctx context.Context, t testing.TB, who string) (name string) {
	t.Helper()
	name = a.prefix + "-" + who
	_, err := a.client.SignUp(ctx, request(name))
	require.NoError(t, err)
	return name
}

// LogIn makes an account as SignUp does and logs it in.
func (a *Accounts) LogIn(ctx context.Context, t testing.TB, who string) *accountv1.LogInResponse {
	t.Helper()
	in, err := a.client.LogIn(ctx, &accountv1.LogInRequest{Name: a.SignUp(ctx, t, who), Password: Password})
	require.NoError(t, err)
	return in
}

// KeyReads are cheap calls over each door, of a method declared idempotent.
func (a *Accounts) KeyReads() []load.Op {
	return []load.Op{
		{Name: "REST GetSigningKeys", Call: func(ctx context.Context) (string, error) {
			return a.rest.Do(ctx, load.Request{Method: "GET", Path: "/v1/signing-keys", Idempotent: !a.Once}, nil)
		}},
		load.GRPC("gRPC GetSigningKeys", func(ctx context.Context, opts ...grpc.CallOption) error {
			_, err := a.client.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{}, opts...)
			return err
		}),
	}
}

// Reads are calls over each door that need account's database, on behalf of an
// account that is made for it. They are good for as long as an access token: 5
// minutes.
func (a *Accounts) Reads(ctx context.Context, t testing.TB) []load.Op {
	t.Helper()
	in := a.LogIn(ctx, t, "reader")
	token, id := in.GetAccessToken(), in.GetAccount().GetAccountId()
	own := func(got string, err error) error {
		if err == nil && got != id {
			return fmt.Errorf("got account %q instead of %q", got, id)
		}
		return err
	}
	return []load.Op{
		{Name: "REST GetAccount", Call: func(ctx context.Context) (string, error) {
			var got answer
			by, err := a.rest.Do(ctx, load.Request{Method: "GET", Path: "/v1/accounts/me", Token: token, Idempotent: !a.Once}, &got)
			return by, own(got.Account.AccountID, err)
		}},
		load.GRPC("gRPC GetAccount", func(ctx context.Context, opts ...grpc.CallOption) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
			got, err := a.client.GetAccount(ctx, &accountv1.GetAccountRequest{AccountId: "me"}, opts...)
			return own(got.GetAccount().GetAccountId(), err)
		}),
	}
}

// answer is that of SignUp and of GetAccount over REST.
type answer struct {
	Account struct {
		AccountID string `json:"accountId"`
	} `json:"account"`
}

// SignUps make an account over each door, with a request_id of its own, so that
// they are idempotent too.
func (a *Accounts) SignUps() []load.Op {
	return []load.Op{
		{Name: "REST SignUp", Call: func(ctx context.Context) (string, error) {
			id := a.newID()
			var got answer
			var by string
			err := a.patiently(ctx, func() (err error) {
				by, err = a.rest.Do(ctx, load.Request{Method: "POST", Path: "/v1/accounts", Idempotent: !a.Once, Body: map[string]string{
					"requestId": id, "name": id, "password": Password,
				}}, &got)
				return err
			})
			a.remember(id, got.Account.AccountID, err)
			return by, err
		}},
		load.GRPC("gRPC SignUp", func(ctx context.Context, opts ...grpc.CallOption) error {
			id := a.newID()
			var got *accountv1.SignUpResponse
			err := a.patiently(ctx, func() (err error) {
				got, err = a.client.SignUp(ctx, request(id), opts...)
				return err
			})
			a.remember(id, got.GetAccount().GetAccountId(), err)
			return err
		}),
	}
}

// patiently makes a call again, once, that was told to come back because too much is
// under way, as any client should; with Once it does not.
func (a *Accounts) patiently(ctx context.Context, call func() error) error {
	err := call()
	const longest = 3 * time.Second
	pause := askedToWait(err)
	if a.Once || pause == 0 || pause > longest {
		return err
	}
	a.waited.Add(1)
	wait(ctx, pause)
	return call()
}

// askedToWait is after what time a caller who was refused with OVERLOADED may come
// back; 0 when it was not.
func askedToWait(err error) time.Duration {
	if Reason(err) != "OVERLOADED" {
		return 0
	}
	if problem := (*load.ProblemError)(nil); errors.As(err, &problem) {
		seconds, _ := strconv.Atoi(problem.RetryAfter) // 0 for none
		return time.Duration(seconds) * time.Second
	}
	return grpcfault.FromStatus(status.Convert(err)).RetryAfter
}

func (a *Accounts) newID() string { return fmt.Sprintf("%s-%d", a.prefix, a.next.Add(1)) }

func request(id string) *accountv1.SignUpRequest {
	return &accountv1.SignUpRequest{RequestId: id, Name: id, Password: Password}
}

func (a *Accounts) remember(id, account string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.failed = append(a.failed, id)
		return
	}
	a.answers[id] = account
}

// Mixed is 200 calls a second, REST and gRPC, all idempotent: mostly reads, five
// sign-ups a second. It is good for as long as Reads are.
func (a *Accounts) Mixed(ctx context.Context, t testing.TB) load.Plan {
	t.Helper()
	reads := append(a.KeyReads(), a.Reads(ctx, t)...)
	var ops []load.Op
	for i := range 80 {
		ops = append(ops, reads[i%len(reads)])
	}
	writes := a.SignUps()
	ops[20], ops[60] = writes[0], writes[1]
	return load.Plan{Rate: 200, Timeout: 10 * time.Second, Ops: ops}
}

// Check sends every sign-up again once the load has ended. One that was answered
// must be answered the same, and one that failed be answered at all: either
// nothing or all of it was done. No two may share an account. One that was done
// twice would have found its own name taken.
func (a *Accounts) Check(ctx context.Context, t testing.TB) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	require.NotEmpty(t, a.answers)
	for id, account := range a.answers {
		require.NotEmpty(t, account, "answer to %s", id)
	}
	var owners sync.Map // request_id by account id
	again := func(ctx context.Context, id, before string) error {
		got, err := a.client.SignUp(ctx, request(id), grpc.WaitForReady(true))
		for status.Code(err) == codes.ResourceExhausted && ctx.Err() == nil { // too much at once
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			got, err = a.client.SignUp(ctx, request(id), grpc.WaitForReady(true))
		}
		if err != nil {
			return fmt.Errorf("repeat of %s: %w", id, err)
		}
		account := got.GetAccount().GetAccountId()
		if before != "" && account != before {
			return fmt.Errorf("repeat of %s: the account was %s and is %s", id, before, account)
		}
		if other, shared := owners.LoadOrStore(account, id); shared {
			return fmt.Errorf("%s and %s share the account %q", id, other, account)
		}
		return nil
	}
	// What failed is done now, at the price of a password each.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	group, repeating := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for id, account := range a.answers {
		group.Go(func() error { return again(repeating, id, account) })
	}
	for _, id := range a.failed {
		group.Go(func() error { return again(repeating, id, "") })
	}
	require.NoError(t, group.Wait())
	t.Logf("%d sign-ups, each done once, of which %d only when they were sent again; %d came at a time with too much under way, and once more when they were told to",
		len(a.answers)+len(a.failed), len(a.failed), a.waited.Load())
}
