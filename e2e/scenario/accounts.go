package scenario

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/e2e/load"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// Password is that of all accounts that the scenarios make.
const Password = "a pass phrase of e2e"

// Accounts is load on the account service through both doors of all gateways. It
// remembers what each sign-up was answered.
type Accounts struct {
	rest   *load.REST
	client accountv1.AccountServiceClient
	prefix string
	next   atomic.Int64

	mu      sync.Mutex
	answers map[string]string // account id by request_id
}

// NewAccounts makes load with these clients, which stay the caller's.
func NewAccounts(rest *load.REST, conn *grpc.ClientConn) *Accounts {
	return &Accounts{
		rest: rest, client: accountv1.NewAccountServiceClient(conn),
		prefix: fmt.Sprintf("e2e-%d", time.Now().UnixNano()), answers: map[string]string{},
	}
}

// KeyReads are cheap calls over each door, of a method declared idempotent.
func (a *Accounts) KeyReads() []load.Op {
	return []load.Op{
		{Name: "REST GetSigningKeys", Call: func(ctx context.Context) (string, error) {
			return a.rest.Do(ctx, load.Request{Method: "GET", Path: "/v1/signing-keys", Idempotent: true}, nil)
		}},
		load.GRPC("gRPC GetSigningKeys", func(ctx context.Context, opts ...grpc.CallOption) error {
			_, err := a.client.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{}, opts...)
			return err
		}),
	}
}

// SignUps make an account over each door, with a request_id of its own, so that
// they are idempotent too.
func (a *Accounts) SignUps() []load.Op {
	return []load.Op{
		{Name: "REST SignUp", Call: func(ctx context.Context) (string, error) {
			id := a.newID()
			var answer struct {
				Account struct {
					AccountID string `json:"accountId"`
				} `json:"account"`
			}
			by, err := a.rest.Do(ctx, load.Request{Method: "POST", Path: "/v1/accounts", Idempotent: true, Body: map[string]string{
				"requestId": id, "name": id, "password": Password,
			}}, &answer)
			a.remember(id, answer.Account.AccountID, err)
			return by, err
		}},
		load.GRPC("gRPC SignUp", func(ctx context.Context, opts ...grpc.CallOption) error {
			id := a.newID()
			answer, err := a.client.SignUp(ctx, request(id), opts...)
			a.remember(id, answer.GetAccount().GetAccountId(), err)
			return err
		}),
	}
}

func (a *Accounts) newID() string { return fmt.Sprintf("%s-%d", a.prefix, a.next.Add(1)) }

func request(id string) *accountv1.SignUpRequest {
	return &accountv1.SignUpRequest{RequestId: id, Name: id, Password: Password}
}

func (a *Accounts) remember(id, account string, err error) {
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers[id] = account
}

// Mixed is 200 calls a second, REST and gRPC, all idempotent: mostly reads, five
// sign-ups a second. It is good for as long as an access token: 5 minutes.
func (a *Accounts) Mixed(ctx context.Context, t testing.TB) load.Plan {
	t.Helper()
	name := a.prefix + "-reader"
	up, err := a.client.SignUp(ctx, request(name))
	require.NoError(t, err)
	in, err := a.client.LogIn(ctx, &accountv1.LogInRequest{Name: name, Password: Password})
	require.NoError(t, err)
	token, id := in.GetAccessToken(), up.GetAccount().GetAccountId()
	own := func(got string, err error) error {
		if err == nil && got != id {
			return fmt.Errorf("got account %q instead of %q", got, id)
		}
		return err
	}

	reads := append(a.KeyReads(),
		load.Op{Name: "REST GetAccount", Call: func(ctx context.Context) (string, error) {
			var got struct {
				Account struct {
					AccountID string `json:"accountId"`
				} `json:"account"`
			}
			by, err := a.rest.Do(ctx, load.Request{Method: "GET", Path: "/v1/accounts/me", Token: token, Idempotent: true}, &got)
			return by, own(got.Account.AccountID, err)
		}},
		load.GRPC("gRPC GetAccount", func(ctx context.Context, opts ...grpc.CallOption) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
			got, err := a.client.GetAccount(ctx, &accountv1.GetAccountRequest{AccountId: "me"}, opts...)
			return own(got.GetAccount().GetAccountId(), err)
		}),
	)
	var ops []load.Op
	for i := range 80 {
		ops = append(ops, reads[i%len(reads)])
	}
	writes := a.SignUps()
	ops[20], ops[60] = writes[0], writes[1]
	return load.Plan{Rate: 200, Timeout: 10 * time.Second, Ops: ops}
}

// Check repeats every sign-up that was answered: the answer must be the first
// one, and no two may share an account. A sign-up that was done twice would have
// found its own name taken.
func (a *Accounts) Check(ctx context.Context, t testing.TB) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	require.NotEmpty(t, a.answers)
	owners := map[string]string{}
	for id, account := range a.answers {
		require.NotEmpty(t, account, "answer to %s", id)
		require.Empty(t, owners[account], "%s and another sign-up share an account", id)
		owners[account] = id
		again, err := a.client.SignUp(ctx, request(id), grpc.WaitForReady(true))
		require.NoError(t, err, "repeat of %s", id)
		require.Equal(t, account, again.GetAccount().GetAccountId(), "repeat of %s", id)
	}
	t.Logf("%d sign-ups, each done once", len(a.answers))
}
