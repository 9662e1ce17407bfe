package order_test

import (
	"context"
	"crypto/rand"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/services/order"
)

// till is a market with the test provider behind a way that may break.
type till struct {
	*market
	provider order.Payments
	// after, when set, is what a call fails with after the provider took the money.
	after error
	// instead, when set, is what the provider is replaced with.
	instead func(context.Context) error
	calls   int
}

func (p *till) Take(ctx context.Context, c order.Charge) (string, error) {
	p.calls++
	if p.instead != nil {
		return "", p.instead(ctx)
	}
	reference, err := p.provider.Take(ctx, c)
	if err == nil && p.after != nil {
		return "", p.after
	}
	return reference, err
}

func newTill(t *testing.T) *till {
	t.Helper()
	m := newMarket(t)
	p := &till{market: m, provider: m.store.TestPayments()}
	m.Service = order.New(m.store, order.Outside{Payments: p}, func() time.Time { return time.Unix(0, m.clock.Load()) }, rand.Reader)
	return p
}

func (p *till) topUp(t *testing.T, requestID string, minor int64, unit string) (order.Money, error) {
	t.Helper()
	return p.TopUpWallet(t.Context(), ada, requestID, buyer, order.Money{Minor: minor, Currency: unit}, "card")
}

// taken is how many charges the provider has, and stored how many the ledger does.
func (p *till) taken(t *testing.T) int {
	return get[int](t, p.market, "SELECT count(*)::int FROM test_charges")
}
func (p *till) stored(t *testing.T) int {
	return get[int](t, p.market, "SELECT count(*)::int FROM ledger_entries")
}

func TestTopUp(t *testing.T) {
	p := newTill(t)
	none, err := p.Balances(t.Context(), buyer)
	require.NoError(t, err)
	require.Empty(t, none)
	balance, err := p.topUp(t, "top-up-1", 5000, "EUR")
	require.NoError(t, err)
	require.Equal(t, order.Money{Minor: 5000, Currency: "EUR"}, balance)
	balance, err = p.topUp(t, "top-up-2", 700, "EUR")
	require.NoError(t, err)
	require.Equal(t, order.Money{Minor: 5700, Currency: "EUR"}, balance)
	balance, err = p.topUp(t, "top-up-3", 9, "CHF")
	require.NoError(t, err)
	require.Equal(t, order.Money{Minor: 9, Currency: "CHF"}, balance)
	balance, err = p.topUp(t, "top-up-1", 5000, "EUR")
	require.NoError(t, err)
	require.Equal(t, order.Money{Minor: 5700, Currency: "EUR"}, balance, "a repeat")
	all, err := p.Balances(t.Context(), buyer)
	require.NoError(t, err)
	require.Equal(t, []order.Money{{Minor: 9, Currency: "CHF"}, {Minor: 5700, Currency: "EUR"}}, all)
	others, err := p.Balances(t.Context(), another)
	require.NoError(t, err)
	require.Empty(t, others)
	require.Equal(t, 3, p.calls)
	require.Equal(t, [2]int{3, 3}, [2]int{p.taken(t), p.stored(t)})

	t.Run("ErrRequestIDReused", func(t *testing.T) {
		for _, c := range []order.Money{{Minor: 5001, Currency: "EUR"}, {Minor: 5000, Currency: "USD"}} {
			_, err := p.topUp(t, "top-up-1", c.Minor, c.Currency)
			require.ErrorIs(t, err, order.ErrRequestIDReused)
		}
		_, err := p.TopUpWallet(t.Context(), ada, "top-up-1", another, order.Money{Minor: 5000, Currency: "EUR"}, "card")
		require.ErrorIs(t, err, order.ErrRequestIDReused)
		require.Equal(t, 3, p.taken(t))
	})
	t.Run("OfAnotherCaller", func(t *testing.T) {
		_, err := p.TopUpWallet(t.Context(), "acc_grace", "top-up-1", another, order.Money{Minor: 1, Currency: "EUR"}, "card")
		require.NoError(t, err)
		require.Equal(t, 4, p.taken(t))
	})
	t.Run("Forgotten", func(t *testing.T) {
		p.exec(t, "DELETE FROM requests")
		balance, err := p.topUp(t, "top-up-2", 700, "EUR")
		require.NoError(t, err)
		require.EqualValues(t, 5700, balance.Minor)
		require.Equal(t, [2]int{4, 4}, [2]int{p.taken(t), p.stored(t)})
	})
}

func TestTopUpRefuses(t *testing.T) {
	p := newTill(t)
	for name, c := range map[string]struct {
		minor      int64
		unit, path string
	}{
		"ErrNothing":       {0, "EUR", "amount.amount_minor"},
		"ErrNegative":      {-1, "EUR", "amount.amount_minor"},
		"ErrTooMuch":       {order.MaxAmount + 1, "EUR", "amount.amount_minor"},
		"ErrOverflow":      {math.MaxInt64, "EUR", "amount.amount_minor"},
		"ErrNoCurrency":    {1, "", "amount.currency"},
		"ErrUnknown":       {1, "ZZZ", "amount.currency"},
		"ErrLowerCase":     {1, "eur", "amount.currency"},
		"ErrNoneAtAll":     {1, "XXX", "amount.currency"},
		"ErrForTests":      {1, "XTS", "amount.currency"},
		"ErrNotACurrency":  {1, "Euro", "amount.currency"},
		"ErrAnotherScript": {1, "ЕUR", "amount.currency"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.topUp(t, "top-up-1", c.minor, c.unit)
			refused(t, err, order.ErrTopUp, c.path)
		})
	}
	require.Zero(t, p.calls, "the provider was asked")

	t.Run("ErrDeclined", func(t *testing.T) {
		_, err := p.TopUpWallet(t.Context(), ada, "top-up-2", buyer, order.Money{Minor: 1, Currency: "EUR"}, order.DeclinedMethod)
		require.ErrorIs(t, err, order.ErrDeclined)
		require.Equal(t, [2]int{0, 0}, [2]int{p.taken(t), p.stored(t)})
		_, err = p.topUp(t, "top-up-2", 1, "EUR")
		require.NoError(t, err, "the same request may be tried with another method")
	})
	t.Run("ErrWalletTooFull", func(t *testing.T) {
		p.fund(t, another, order.Money{Minor: order.MaxAmount, Currency: "JPY"})
		p.exec(t, `INSERT INTO ledger_entries
			SELECT 'ent_' || n, from_account, to_account, currency, amount_minor, kind, order_id, line_id, reference || n, create_time
			FROM ledger_entries, generate_series(2, $1::bigint) AS n WHERE currency = 'JPY'`, order.MaxBalance/order.MaxAmount)
		p.exec(t, "UPDATE ledger_accounts SET balance_minor = $1 WHERE balance_minor > 0 AND currency = 'JPY'", int64(order.MaxBalance))
		_, err := p.TopUpWallet(t.Context(), ada, "top-up-3", another, order.Money{Minor: 1, Currency: "JPY"}, "card")
		refused(t, err, order.ErrWalletTooFull, "amount.amount_minor")
		_, err = p.TopUpWallet(t.Context(), ada, "top-up-3", another, order.Money{Minor: 1, Currency: "EUR"}, "card")
		require.NoError(t, err, "another currency")
		require.Equal(t, 2, p.taken(t))
	})
	t.Run("ErrPaymentUnavailable", func(t *testing.T) {
		p.instead = func(context.Context) error { return order.ErrPaymentUnavailable }
		_, err := p.topUp(t, "top-up-4", 1, "EUR")
		require.ErrorIs(t, err, order.ErrPaymentUnavailable)
		p.instead = func(ctx context.Context) error {
			_, bounded := ctx.Deadline()
			require.True(t, bounded, "the provider may take for ever")
			return context.DeadlineExceeded
		}
		_, err = p.topUp(t, "top-up-4", 1, "EUR")
		require.ErrorIs(t, err, order.ErrPaymentUnavailable)
		p.instead = nil
		_, err = p.topUp(t, "top-up-4", 1, "EUR")
		require.NoError(t, err)
		without := order.New(p.store, order.Outside{}, time.Now, rand.Reader)
		_, err = without.TopUpWallet(t.Context(), ada, "top-up-5", buyer, order.Money{Minor: 1, Currency: "EUR"}, "card")
		require.ErrorIs(t, err, order.ErrPaymentUnavailable)
	})
}

// Whoever ends between taking the money and storing it has taken nothing twice when
// the request is repeated.
func TestTopUpAfterACrash(t *testing.T) {
	p := newTill(t)
	p.after = errors.New("the instance ended")
	_, err := p.topUp(t, "top-up-1", 5000, "EUR")
	require.Error(t, err)
	require.Equal(t, [2]int{1, 0}, [2]int{p.taken(t), p.stored(t)})
	p.after = nil

	// Another instance, which knows nothing of it.
	other := order.New(p.store, order.Outside{Payments: p.store.TestPayments()}, time.Now, rand.Reader)
	_, err = other.TopUpWallet(t.Context(), ada, "top-up-1", buyer, order.Money{Minor: 6000, Currency: "EUR"}, "card")
	require.ErrorIs(t, err, order.ErrRequestIDReused)
	balance, err := other.TopUpWallet(t.Context(), ada, "top-up-1", buyer, order.Money{Minor: 5000, Currency: "EUR"}, "card")
	require.NoError(t, err)
	require.EqualValues(t, 5000, balance.Minor)
	require.Equal(t, [2]int{1, 1}, [2]int{p.taken(t), p.stored(t)})

	t.Run("AtOnce", func(t *testing.T) {
		results := make(chan error, 8)
		for range cap(results) {
			go func() {
				_, err := other.TopUpWallet(t.Context(), ada, "top-up-2", buyer, order.Money{Minor: 70, Currency: "EUR"}, "card")
				results <- err
			}()
		}
		for range cap(results) {
			require.NoError(t, <-results)
		}
		require.Equal(t, [2]int{2, 2}, [2]int{p.taken(t), p.stored(t)})
		require.EqualValues(t, 5070, p.balance(t, buyer))
	})
	t.Run("IDTakenMeanwhile", func(t *testing.T) {
		// By another request, while the provider was at it: what was taken does not vanish.
		late := order.New(p.store, order.Outside{Payments: leaver{p.store.TestPayments(), func() {
			p.exec(t, "INSERT INTO requests VALUES ($1, 'top-up-4', decode(repeat('00', 32), 'hex'), 'ord_1', now() + interval '1 day')", ada)
		}}}, time.Now, rand.Reader)
		balance, err := late.TopUpWallet(t.Context(), ada, "top-up-4", buyer, order.Money{Minor: 30, Currency: "EUR"}, "card")
		require.NoError(t, err)
		require.EqualValues(t, 5100, balance.Minor)
		require.Equal(t, [2]int{3, 3}, [2]int{p.taken(t), p.stored(t)})
		_, err = late.TopUpWallet(t.Context(), ada, "top-up-4", buyer, order.Money{Minor: 30, Currency: "EUR"}, "card")
		require.ErrorIs(t, err, order.ErrRequestIDReused)
		require.Equal(t, 3, p.taken(t))
	})
	t.Run("CallerLeaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		leaving := order.New(p.store, order.Outside{Payments: leaver{p.store.TestPayments(), cancel}}, time.Now, rand.Reader)
		balance, err := leaving.TopUpWallet(ctx, ada, "top-up-3", buyer, order.Money{Minor: 1, Currency: "EUR"}, "card")
		require.NoError(t, err)
		require.EqualValues(t, 5101, balance.Minor)
	})
}

// leaver is a provider that takes, while its caller goes away.
type leaver struct {
	order.Payments
	leave func()
}

func (l leaver) Take(ctx context.Context, c order.Charge) (string, error) {
	defer l.leave()
	return l.Payments.Take(ctx, c)
}

func TestListWalletEntries(t *testing.T) {
	p := newTill(t)
	p.put(t, "dev_one")
	for n, unit := range []string{"EUR", "CHF", "EUR"} {
		p.clock.Add(int64(time.Millisecond))
		_, err := p.topUp(t, p.requestID(), int64(1_000_000+n), unit)
		require.NoError(t, err)
	}
	booked := p.booked(t, p.held(t, buyer, slotOn("dev_one", 20, 20)))
	p.clock.Add(int64(time.Millisecond))
	_, err := p.cancel(t, booked)
	require.NoError(t, err)

	type seen struct {
		kind  order.EntryKind
		from  order.AccountKind
		minor int64
		unit  string
		order string
	}
	list := func(organisationID string, size int) (all []seen) {
		for page := (paging.Page{Size: size}); ; {
			found, next, err := p.ListWalletEntries(t.Context(), organisationID, page)
			require.NoError(t, err)
			for _, e := range found {
				require.Regexp(t, `^ent_[0-7][0-9A-HJKMNP-TV-Z]{25}$`, e.ID)
				require.WithinDuration(t, time.Unix(0, p.clock.Load()), e.CreateTime, time.Minute)
				all = append(all, seen{e.Kind, e.From.Kind, e.Minor, e.Currency, e.OrderID})
			}
			if page.Token = next; next == "" {
				return all
			}
		}
	}
	want := []seen{
		{order.Refund, order.OrderAccount, 360_000, "EUR", booked.ID},
		{order.Payment, order.WalletAccount, 360_000, "EUR", booked.ID},
		{order.TopUp, order.ExternalAccount, 1_000_002, "EUR", ""},
		{order.TopUp, order.ExternalAccount, 1_000_001, "CHF", ""},
		{order.TopUp, order.ExternalAccount, 1_000_000, "EUR", ""},
	}
	for _, size := range []int{0, 1, 2, 5} {
		require.Equal(t, want, list(buyer, size), "pages of %d", size)
	}
	require.Empty(t, list(another, 0))
	_, next, err := p.ListWalletEntries(t.Context(), buyer, paging.Page{Size: 1})
	require.NoError(t, err)
	_, _, err = p.ListWalletEntries(t.Context(), another, paging.Page{Token: next})
	refused(t, err, paging.ErrTokenInvalid, "page_token")
}
