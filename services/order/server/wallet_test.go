package server_test

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/paging"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
	"github.com/marquee-ads/marquee/services/order/server"
)

func TestWallet(t *testing.T) {
	store, db := postgrestest.On(t, &pg)
	s := server.NewWallets(order.New(store, order.Outside{Payments: store.TestPayments()}, time.Now, rand.Reader))
	ctx := auth.ContextWithCaller(t.Context(), auth.Caller{AccountID: "acc_ada"})
	_, err := s.TopUpWallet(t.Context(), &orderv1.TopUpWalletRequest{})
	require.ErrorIs(t, err, auth.ErrTokenMissing)
	before := time.Now()
	for _, amount := range []*orderv1.Money{{AmountMinor: 5000, Currency: "EUR"}, {AmountMinor: 70, Currency: "CHF"}} {
		done, err := s.TopUpWallet(ctx, &orderv1.TopUpWalletRequest{
			OrganisationId: buyer, RequestId: "request-" + amount.GetCurrency(), Amount: amount, PaymentMethod: "card",
		})
		require.NoError(t, err)
		require.Equal(t, amount.String(), done.GetBalance().String())
	}
	_, err = s.TopUpWallet(ctx, &orderv1.TopUpWalletRequest{
		OrganisationId: buyer, RequestId: "request-3", Amount: &orderv1.Money{AmountMinor: 1, Currency: "EUR"}, PaymentMethod: "declined",
	})
	require.ErrorIs(t, err, order.ErrDeclined)
	// What the order and its display's owner have to do with it.
	for _, sql := range []string{
		`INSERT INTO ledger_accounts VALUES ('order:ord_1', 'ORDER', '', 'EUR', 0)`,
		`INSERT INTO ledger_entries VALUES ('ent_7ZZZZZZZZZZZZZZZZZZZZZZZZX', 'wallet:` + buyer + `:EUR', 'order:ord_1', 'EUR', 300, 'BOOKING', 'ord_1', '', '', now())`,
		`INSERT INTO ledger_entries VALUES ('ent_7ZZZZZZZZZZZZZZZZZZZZZZZZY', 'order:ord_1', 'wallet:` + buyer + `:EUR', 'EUR', 100, 'REFUND', 'ord_1', '', '', now())`,
		`INSERT INTO ledger_entries VALUES ('ent_7ZZZZZZZZZZZZZZZZZZZZZZZZZ', 'order:ord_1', 'wallet:` + buyer + `:EUR', 'EUR', 200, 'EARNING', 'ord_1', 'lin_1', '', now())`,
	} {
		_, err := db.Pool().Exec(t.Context(), sql)
		require.NoError(t, err)
	}

	wallet, err := s.GetWallet(ctx, &orderv1.GetWalletRequest{OrganisationId: buyer})
	require.NoError(t, err)
	require.Equal(t, (&orderv1.GetWalletResponse{Balances: []*orderv1.Money{
		{AmountMinor: 70, Currency: "CHF"}, {AmountMinor: 5000, Currency: "EUR"},
	}}).String(), wallet.String())
	empty, err := s.GetWallet(ctx, &orderv1.GetWalletRequest{OrganisationId: owner})
	require.NoError(t, err)
	require.Empty(t, empty.GetBalances())

	type seen struct {
		kind        orderv1.EntryKind
		minor       int64
		unit        string
		order, line string
	}
	var all []seen
	for request := (&orderv1.ListWalletEntriesRequest{OrganisationId: buyer, PageSize: 2}); ; {
		page, err := s.ListWalletEntries(ctx, request)
		require.NoError(t, err)
		for _, e := range page.GetEntries() {
			require.Regexp(t, `^ent_[0-7][0-9A-HJKMNP-TV-Z]{25}$`, e.GetEntryId())
			require.WithinRange(t, e.GetCreateTime().AsTime(), before.Add(-time.Minute), time.Now().Add(time.Minute))
			all = append(all, seen{e.GetKind(), e.GetAmountMinor(), e.GetCurrency(), e.GetOrderId(), e.GetLineId()})
		}
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			break
		}
	}
	require.ElementsMatch(t, []seen{
		{orderv1.EntryKind_ENTRY_KIND_TOP_UP, 70, "CHF", "", ""}, {orderv1.EntryKind_ENTRY_KIND_TOP_UP, 5000, "EUR", "", ""},
	}, all[3:])
	require.Equal(t, []seen{
		{orderv1.EntryKind_ENTRY_KIND_EARNING, 200, "EUR", "ord_1", "lin_1"},
		{orderv1.EntryKind_ENTRY_KIND_REFUND, 100, "EUR", "ord_1", ""},
		{orderv1.EntryKind_ENTRY_KIND_BOOKING, -300, "EUR", "ord_1", ""},
	}, all[:3])
	_, err = s.ListWalletEntries(ctx, &orderv1.ListWalletEntriesRequest{OrganisationId: buyer, PageToken: "?"})
	require.ErrorIs(t, err, paging.ErrTokenInvalid)
}
