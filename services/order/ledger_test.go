package order_test

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
)

// scene is a market in which everything has happened to some order, whose ledger may
// be damaged.
type scene struct {
	*market
	held, booked, cancelled, settled order.Order
}

func newScene(t *testing.T) *scene {
	t.Helper()
	store, db := postgrestest.On(t, &pg)
	m := &market{store: store, db: db}
	m.set(time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC))
	m.Service = order.New(store, order.Outside{Payments: store.TestPayments()}, func() time.Time { return time.Unix(0, m.clock.Load()) }, rand.Reader)
	m.put(t, "dev_one")
	m.put(t, "dev_free", "price_minor = 0")
	_, err := m.TopUpWallet(t.Context(), ada, "top-up-1", buyer, order.Money{Minor: 100_000_000, Currency: "EUR"}, "card")
	require.NoError(t, err)
	_, err = m.TopUpWallet(t.Context(), ada, "top-up-2", another, order.Money{Minor: 900, Currency: "CHF"}, "card")
	require.NoError(t, err)

	s := &scene{market: m}
	two := slotOn("dev_one", 4, 8)
	two.Slots = 2
	s.booked = m.booked(t, m.held(t, buyer, two, slotOn("dev_free", 4, 4)))
	s.cancelled = m.booked(t, m.held(t, buyer, slotOn("dev_one", 2, 3)))
	s.settled = m.booked(t, m.held(t, buyer, slotOn("dev_one", 2, 2)))
	m.booked(t, m.held(t, buyer, slotOn("dev_free", 9, 9)))
	s.held = m.held(t, buyer, slotOn("dev_one", 20, 20))
	expired := m.held(t, buyer, slotOn("dev_one", 21, 21))
	m.exec(t, "UPDATE orders SET hold_expire_time = now() WHERE order_id = $1", expired.ID)
	m.exec(t, "UPDATE reservations SET hold_expire_time = now() WHERE line_id = $1", expired.Lines[0].ID)

	m.set(time.Date(2026, 3, 2, 20, 0, 0, 0, time.UTC))
	s.cancelled, err = m.cancel(t, s.cancelled)
	require.NoError(t, err)
	m.set(time.Date(2026, 3, 6, 10, 0, 0, 0, time.UTC))
	line := s.settled.Lines[0]
	done, err := store.SettleOrder(t.Context(), s.settled, map[string]int64{line.ID: line.Plays / 3}, time.Unix(0, m.clock.Load()))
	require.NoError(t, err)
	require.True(t, done)
	return s
}

func (s *scene) findings(t *testing.T) []string {
	t.Helper()
	found, err := s.store.CheckLedger(t.Context())
	require.NoError(t, err)
	return found
}

// Each damage is found, and named.
func TestCheckLedger(t *testing.T) {
	whole := newScene(t)
	require.Empty(t, whole.findings(t))
	require.Equal(t, order.Completed, whole.find(t, whole.settled).State)
	require.Equal(t, order.Cancelled, whole.find(t, whole.cancelled).State)
	require.NotZero(t, whole.find(t, whole.settled).RefundedMinor)
	require.NotZero(t, whole.balance(t, owner))

	for name, c := range map[string]struct {
		damage []string
		want   []string // a part of each finding; {booked} and so on are ids
	}{
		"WalletChanged": {
			[]string{"UPDATE ledger_accounts SET balance_minor = balance_minor + 5 WHERE account_id = 'wallet:" + another + ":CHF'"},
			[]string{"all accounts in CHF sum to 5 minor units and not to 0", "account wallet:" + another + ":CHF has 905 minor units, and its entries sum to 900"},
		},
		"WalletNegative": {
			[]string{
				"ALTER TABLE ledger_accounts DROP CONSTRAINT ledger_accounts_balance_not_negative",
				"UPDATE ledger_accounts SET balance_minor = -1 WHERE account_id = 'wallet:" + another + ":CHF'",
				"UPDATE ledger_entries SET from_account = to_account, to_account = from_account, amount_minor = 1 WHERE currency = 'CHF'",
			},
			[]string{"account wallet:" + another + ":CHF has -1 minor units, and its entries sum to -1"},
		},
		"MoneyMoved": {
			[]string{
				"UPDATE ledger_accounts SET balance_minor = balance_minor - 7 WHERE account_id = 'wallet:" + owner + ":EUR'",
				"UPDATE ledger_accounts SET balance_minor = balance_minor + 7 WHERE account_id = 'wallet:" + buyer + ":EUR'",
			},
			[]string{"account wallet:" + buyer + ":EUR has", "account wallet:" + owner + ":EUR has"},
		},
		"EntryGone": {
			[]string{"DELETE FROM ledger_entries WHERE kind = 'FEE' AND order_id = '{settled}'"},
			[]string{"account order:{settled} has 0 minor units, and its entries sum to"},
		},
		"EntryOfNoAccount": {
			[]string{
				"ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_to_fkey",
				"UPDATE ledger_entries SET to_account = 'platform:XXX' WHERE kind = 'FEE' AND order_id = '{settled}'",
			},
			[]string{"all accounts in EUR sum to -", "belong to the account platform:XXX, which there is not"},
		},
		"BookedUnpaid": {
			[]string{
				"DELETE FROM ledger_entries WHERE order_id = '{booked}'",
				"UPDATE ledger_accounts SET balance_minor = 0 WHERE account_id = 'order:{booked}'",
				"UPDATE ledger_accounts AS a SET balance_minor = balance_minor + o.price_minor FROM orders AS o WHERE o.order_id = '{booked}' AND a.account_id = 'wallet:" + buyer + ":EUR'",
			},
			[]string{"order {booked} was booked for 3600000 minor units of EUR, and is not paid once", "account order:{booked} has 0 minor units of EUR, and its order is booked for 3600000"},
		},
		"PaidTwice": {
			[]string{
				"DROP INDEX ledger_entries_paid_once_idx",
				"INSERT INTO ledger_entries SELECT 'ent_2', from_account, to_account, currency, amount_minor, kind, order_id, line_id, reference, create_time FROM ledger_entries WHERE kind = 'BOOKING' AND order_id = '{booked}'",
				"UPDATE ledger_accounts SET balance_minor = balance_minor * 2 WHERE account_id = 'order:{booked}'",
				"UPDATE ledger_accounts AS a SET balance_minor = balance_minor - o.price_minor FROM orders AS o WHERE o.order_id = '{booked}' AND a.account_id = 'wallet:" + buyer + ":EUR'",
			},
			[]string{"it has 2 payments of 7200000 minor units", "account order:{booked} has 7200000 minor units of EUR, and its order is booked for 3600000"},
		},
		"PaidByAnother": {
			[]string{
				"UPDATE ledger_entries SET from_account = 'wallet:" + owner + ":EUR' WHERE kind = 'BOOKING' AND order_id = '{booked}'",
				"UPDATE ledger_accounts SET balance_minor = balance_minor + 3600000 WHERE account_id = 'wallet:" + buyer + ":EUR'",
				"ALTER TABLE ledger_accounts DROP CONSTRAINT ledger_accounts_balance_not_negative",
				"UPDATE ledger_accounts SET balance_minor = balance_minor - 3600000 WHERE account_id = 'wallet:" + owner + ":EUR'",
			},
			[]string{"account wallet:" + owner + ":EUR has -", "order {booked} was booked for 3600000 minor units of EUR, and is not paid once"},
		},
		"PaidAndNotBooked": {
			[]string{
				"UPDATE orders SET state = 'HELD', book_time = NULL, hold_expire_time = now() + interval '1 hour' WHERE order_id = '{booked}'",
				"UPDATE reservations SET hold_expire_time = now() + interval '1 hour' WHERE line_id IN (SELECT line_id FROM lines WHERE order_id = '{booked}')",
			},
			[]string{"order {booked} was never booked, and has 1 payments of 3600000", "account order:{booked} has 3600000 minor units of EUR, and nothing is kept for its order, which is HELD"},
		},
		"KeptAfterSettlement": {
			[]string{
				"UPDATE ledger_accounts SET balance_minor = (SELECT amount_minor FROM ledger_entries WHERE kind = 'FEE' AND order_id = '{settled}') WHERE account_id = 'order:{settled}'",
				"DELETE FROM ledger_entries WHERE kind = 'FEE' AND order_id = '{settled}'",
			},
			[]string{"account order:{settled} has", "which is COMPLETED"},
		},
		"KeptAfterCancellation": {
			[]string{
				"UPDATE ledger_accounts SET balance_minor = (SELECT amount_minor FROM ledger_entries WHERE kind = 'FEE' AND order_id = '{cancelled}') WHERE account_id = 'order:{cancelled}'",
				"DELETE FROM ledger_entries WHERE kind = 'FEE' AND order_id = '{cancelled}'",
			},
			[]string{"which is CANCELLED"},
		},
		"AccountOfNoOrder": {
			[]string{"INSERT INTO ledger_accounts VALUES ('order:ord_nobody', 'ORDER', '', 'EUR', 0)"},
			[]string{"account order:ord_nobody is of an order that there is not"},
		},
		"RefundOtherwise": {
			[]string{"UPDATE orders SET refunded_minor = refunded_minor - 1 WHERE order_id = '{cancelled}'"},
			[]string{"order {cancelled} says that"},
		},
		"EarningOtherwise": {
			[]string{"UPDATE lines SET earned_minor = earned_minor - 1 WHERE order_id = '{settled}'"},
			[]string{"line {settled line} says that"},
		},
		"ReservationGone": {
			[]string{"DELETE FROM reservations WHERE line_id = '{booked line}' AND lower(place) % 4096 = 1"},
			[]string{"line {booked line} is booked, and its slot 1 is not reserved"},
		},
		"ReservationExpires": {
			[]string{"UPDATE reservations SET hold_expire_time = now() + interval '1 hour' WHERE line_id = '{booked line}' AND lower(place) % 4096 = 1"},
			[]string{"line {booked line} is booked, and the reservation of its slot 1 expires", "is reserved for line {booked line}, and is not what its order {booked} has, which is BOOKED"},
		},
		"ReservationShorter": {
			[]string{"UPDATE reservations SET times = tstzmultirange(tstzrange(lower(times), lower(times) + interval '1 hour')) WHERE line_id = '{booked line}' AND lower(place) % 4096 = 0"},
			[]string{"line {booked line} is booked, and its slot 0 is not reserved at all of its times"},
		},
		"ReservationLonger": {
			[]string{"UPDATE reservations SET times = times + tstzmultirange(tstzrange('2027-01-01Z', '2027-01-02Z')) WHERE line_id = '{booked line}' AND lower(place) % 4096 = 0"},
			[]string{"is reserved for line {booked line}, and is not what its order {booked} has, which is BOOKED"},
		},
		"ReservationOfAnotherSlot": {
			[]string{"UPDATE reservations SET place = int8range(lower(place) + 3, upper(place) + 3) WHERE line_id = '{booked line}' AND lower(place) % 4096 = 1"},
			[]string{"line {booked line} is booked, and its slot 1 is not reserved", "is reserved for line {booked line}, and is not what its order {booked} has"},
		},
		"ReservationOfNothing": {
			[]string{
				"ALTER TABLE reservations DROP CONSTRAINT reservations_line_id_fkey",
				"INSERT INTO reservations VALUES ('lin_nobody', '[1,2)', '{[2027-01-01 00:00Z,2027-01-02 00:00Z)}', NULL)",
			},
			[]string{"place [1,2) is reserved for line lin_nobody, which there is not"},
		},
		"ReservationOfAHold": {
			[]string{"UPDATE reservations SET hold_expire_time = NULL WHERE line_id = '{held line}'"},
			[]string{"is reserved for line {held line}, and is not what its order {held} has, which is HELD"},
		},
		"ReservationOfTheCancelled": {
			[]string{"UPDATE reservations SET times = times + tstzmultirange(tstzrange('2026-03-02 20:00Z', '2026-03-02 21:00Z')) WHERE line_id = '{cancelled line}'"},
			[]string{"is reserved for line {cancelled line}, and is not what its order {cancelled} has, which is CANCELLED"},
		},
		"HoldOfTheSettled": {
			[]string{"UPDATE reservations SET hold_expire_time = now() + interval '1 hour' WHERE line_id = '{settled line}'"},
			[]string{"is reserved for line {settled line}, and is not what its order {settled} has, which is COMPLETED"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			names := strings.NewReplacer(
				"{held}", s.held.ID, "{booked}", s.booked.ID, "{cancelled}", s.cancelled.ID, "{settled}", s.settled.ID,
				"{held line}", s.held.Lines[0].ID, "{booked line}", s.booked.Lines[0].ID, "{cancelled line}", s.cancelled.Lines[0].ID, "{settled line}", s.settled.Lines[0].ID,
			)
			for _, sql := range c.damage {
				tag, err := s.db.Pool().Exec(t.Context(), names.Replace(sql))
				require.NoError(t, err, sql)
				if strings.HasPrefix(sql, "UPDATE") || strings.HasPrefix(sql, "DELETE") {
					require.NotZero(t, tag.RowsAffected(), "%s: it damages nothing", sql)
				}
			}
			found := s.findings(t)
			all := strings.Join(found, "\n")
			for _, part := range c.want {
				require.Contains(t, all, names.Replace(part))
			}
		})
	}
}

// What is found of one kind is bounded.
func TestCheckLedgerMuch(t *testing.T) {
	s := newScene(t)
	s.exec(t, "INSERT INTO ledger_accounts SELECT 'order:ord_' || n, 'ORDER', '', 'EUR', 0 FROM generate_series(1, 1000) AS n")
	found := s.findings(t)
	require.Len(t, found, 101)
	require.Equal(t, "and more like the last 100", found[100])
}
