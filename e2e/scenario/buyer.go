package scenario

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// tokenFor is for how long a buyer calls with one access token, which is good for
// five minutes.
const tokenFor = 4 * time.Minute

// Buyer is somebody who owns an organisation that books air time, for many callers at
// once and as long as it takes.
type Buyer struct {
	*Owner

	mu    sync.Mutex // guards Owner.Token
	since time.Time  // when that was made
}

// NewBuyer signs up through these doors and makes the organisation, which has no money.
func NewBuyer(ctx context.Context, t testing.TB, doors Doors) *Buyer {
	t.Helper()
	return &Buyer{Owner: NewAdvertiser(ctx, t, doors), since: time.Now()}
}

// TopUp brings money into the wallet, in minor units.
func (b *Buyer) TopUp(ctx context.Context, requestID string, money int64, currency string) error {
	return b.Ask(ctx, GRPC, &orderv1.TopUpWalletRequest{
		RequestId: requestID, Amount: &orderv1.Money{AmountMinor: money, Currency: currency}, PaymentMethod: "test",
	}, nil)
}

// Ask is Owner's, with a token that is good.
func (b *Buyer) Ask(ctx context.Context, door Door, in, out proto.Message) error {
	token, err := b.token(ctx)
	if err != nil {
		return err
	}
	return b.askAs(ctx, token, door, in, out)
}

func (b *Buyer) token(ctx context.Context) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.since) > tokenFor {
		if err := b.LogIn(ctx); err != nil {
			return "", fmt.Errorf("another access token: %w", err)
		}
		b.since = time.Now()
	}
	return b.Token, nil
}
