package postgres_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

const (
	ada   = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	grace = "org_01BX5ZZKBKACTAV9WEVGEMMVRZ"
)

func euros(minor int64) order.Money { return order.Money{Minor: minor, Currency: "EUR"} }

// between is an entry from one wallet to another, which nothing but this test makes.
func between(from, to string, minor int64) order.Entry {
	return order.Entry{Kind: order.Refund, From: order.Wallet(from), To: order.Wallet(to), Money: euros(minor)}
}

func topUp(organisationID, reference string, m order.Money) order.Entry {
	return order.Entry{Kind: order.TopUp, From: order.External(), To: order.Wallet(organisationID), Money: m, Reference: reference}
}

func balances(t *testing.T, store *postgres.Store, organisationID string) []order.Money {
	t.Helper()
	all, err := store.Balances(t.Context(), organisationID)
	require.NoError(t, err)
	return all
}

func sound(t *testing.T, store *postgres.Store) {
	t.Helper()
	findings, err := store.CheckLedger(t.Context())
	require.NoError(t, err)
	require.Empty(t, findings)
}

func TestMove(t *testing.T) {
	store, db := postgrestest.On(t, &pg)
	now := time.Now()
	move := func(entries ...order.Entry) error { return store.Move(t.Context(), now, entries...) }
	require.NoError(t, move(topUp(ada, "1", euros(1000)), topUp(ada, "2", order.Money{Minor: 7, Currency: "CHF"})))
	require.Equal(t, []order.Money{{Minor: 7, Currency: "CHF"}, euros(1000)}, balances(t, store, ada))

	t.Run("Nothing", func(t *testing.T) {
		require.NoError(t, move())
		require.NoError(t, move(between(ada, grace, 0)))
		require.Empty(t, balances(t, store, grace))
	})
	t.Run("Several", func(t *testing.T) {
		// What goes in pays for what goes out, whatever comes first.
		require.NoError(t, move(between(grace, ada, 200), between(ada, grace, 500)))
		require.Equal(t, []order.Money{euros(300)}, balances(t, store, grace))
		found, err := store.ListWalletEntries(t.Context(), grace, "", 10)
		require.NoError(t, err)
		require.Len(t, found, 2)
		require.Equal(t, order.Wallet(ada), found[0].From, "the order of entries of one moment")
	})
	t.Run("ErrFunds", func(t *testing.T) {
		err := move(topUp(grace, "3", euros(1)), between(grace, ada, 305))
		require.ErrorIs(t, err, order.ErrFunds)
		f, _ := fault.From(err)
		require.Equal(t, "the wallet has 4 minor units of EUR less than this costs: top it up", f.Message)
		require.NotEmpty(t, database.Violated(err), "who said so was not the constraint")
		require.Equal(t, []order.Money{euros(300)}, balances(t, store, grace), "a part was moved")
		require.ErrorIs(t, move(order.Entry{Kind: order.Payment, From: order.Wallet("org_nobody"), To: order.Kept("ord_1"), Money: euros(1)}), order.ErrFunds)
	})
	t.Run("OtherCurrency", func(t *testing.T) {
		require.ErrorIs(t, move(order.Entry{Kind: order.Payment, From: order.Wallet(ada), To: order.Kept("ord_1"), Money: order.Money{Minor: 8, Currency: "CHF"}}), order.ErrFunds)
	})
	t.Run("ErrKeptOverdrawn", func(t *testing.T) {
		err := move(order.Entry{Kind: order.Refund, From: order.Kept("ord_1"), To: order.Wallet(ada), Money: euros(1)})
		require.Error(t, err)
		require.NotErrorIs(t, err, order.ErrFunds, "it is no wallet that has too little")
	})
	t.Run("ErrAmount", func(t *testing.T) {
		for _, minor := range []int64{-1, order.MaxAmount + 1, math.MaxInt64, math.MinInt64} {
			require.ErrorContains(t, move(between(ada, grace, minor)), "moving")
		}
	})
	t.Run("ErrTopUpTwice", func(t *testing.T) {
		require.Equal(t, "ledger_entries_top_up_once_idx", database.Violated(move(topUp(ada, "1", euros(1)))))
	})
	t.Run("ErrOrderInTwoCurrencies", func(t *testing.T) {
		pay := func(m order.Money) error {
			return move(order.Entry{Kind: order.Fee, From: order.Wallet(ada), To: order.Kept("ord_2"), Money: m})
		}
		require.NoError(t, pay(euros(1)))
		require.Equal(t, "ledger_entries_to_fkey", database.Violated(pay(order.Money{Minor: 1, Currency: "CHF"})))
		require.NoError(t, move(order.Entry{Kind: order.Refund, From: order.Kept("ord_2"), To: order.Wallet(ada), Money: euros(1)}))
		_, err := db.Pool().Exec(t.Context(), "DELETE FROM ledger_entries WHERE 'order:ord_2' IN (from_account, to_account)")
		require.NoError(t, err)
		_, err = db.Pool().Exec(t.Context(), "DELETE FROM ledger_accounts WHERE account_id = 'order:ord_2'")
		require.NoError(t, err)
	})
	sound(t, store)
}

// Moves between the same wallets in both directions wait for each other, and none of
// them for ever.
func TestMoveAtOnce(t *testing.T) {
	store, _ := postgrestest.On(t, &pg)
	now := time.Now()
	const wallets, movers, moves = 4, 8, 60
	var organisations []string
	for n := range wallets {
		organisations = append(organisations, fmt.Sprintf("org_%026d", n))
		require.NoError(t, store.Move(t.Context(), now, topUp(organisations[n], fmt.Sprint(n), euros(500))))
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		want   = map[string]int64{}
		funds  int
		failed []error
	)
	for seed := range movers {
		wg.Go(func() {
			source := rand.New(rand.NewPCG(uint64(seed), 0))
			for range moves {
				order1 := source.Perm(wallets)
				a, b, c := organisations[order1[0]], organisations[order1[1]], organisations[order1[2]]
				some := 1 + source.Int64N(200)
				err := store.Move(context.Background(), now, between(a, b, some), between(c, a, some/2), between(b, c, 1))
				mu.Lock()
				f, _ := fault.From(err)
				switch {
				case err == nil:
					want[a] += some/2 - some
					want[b] += some - 1
					want[c] += 1 - some/2
				case f != nil && f.Reason == order.ErrFunds.Reason:
					funds++
				default:
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	moved := make(chan struct{})
	go func() { defer close(moved); wg.Wait() }()
	for checked := false; !checked; {
		select {
		case <-moved:
			checked = true
		default:
		}
		sound(t, store) // also while money moves
	}
	require.Empty(t, failed)
	require.Less(t, funds, movers*moves/2, "most were refused")
	var sum int64
	for _, o := range organisations {
		b := balances(t, store, o)[0].Minor
		require.Equal(t, 500+want[o], b, o)
		sum += b
	}
	require.EqualValues(t, 500*wallets, sum)
	sound(t, store)
}

// Many make the same new accounts, in whatever order they name them.
func TestMoveToNewAccountsAtOnce(t *testing.T) {
	store, _ := postgrestest.On(t, &pg)
	var wg sync.WaitGroup
	failed := make([]error, 8)
	for n := range failed {
		wg.Go(func() {
			for round := range 20 {
				source := rand.New(rand.NewPCG(uint64(n), uint64(round)))
				var entries []order.Entry
				for _, wallet := range source.Perm(5) {
					entries = append(entries, topUp(fmt.Sprintf("org_%d_%d", round, wallet), fmt.Sprint(n, round, wallet), euros(1)))
				}
				if err := store.Move(context.Background(), time.Now(), entries...); err != nil {
					failed[n] = err
				}
			}
		})
	}
	wg.Wait()
	for _, err := range failed {
		require.NoError(t, err)
	}
	for round := range 20 {
		for wallet := range 5 {
			require.Equal(t, []order.Money{euros(8)}, balances(t, store, fmt.Sprintf("org_%d_%d", round, wallet)))
		}
	}
	sound(t, store)
}

// Who has locked displays has them alone, and nobody who wants the same ones waits for
// ever, in whatever order they name them.
func TestLockDisplays(t *testing.T) {
	store, db := postgrestest.On(t, &pg)
	var ids []string
	for n := range 5 {
		ids = append(ids, fmt.Sprintf("dev_%d", n))
		_, err := db.Pool().Exec(t.Context(), `INSERT INTO displays (device_id, organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px,
				loop_seconds, slot_seconds, price_minor, currency, time_zone, hours, revision, playable, update_time)
			VALUES ($1, 'org_', '', 0, 0, '', '', 1, 1, 60, 10, 0, 'EUR', 'UTC', '[]', 1, true, now())`, ids[n])
		require.NoError(t, err)
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		holder = map[string]int{}
		shared int
		failed []error
	)
	for seed := range 6 {
		wg.Go(func() {
			source := rand.New(rand.NewPCG(uint64(seed), 0))
			for range 30 {
				var mine []string
				for _, n := range source.Perm(len(ids))[:3] {
					mine = append(mine, ids[n])
				}
				err := store.Locked(context.Background(), append(mine, "dev_nobody"), func(displays map[string]order.Display) error {
					mu.Lock()
					defer mu.Unlock()
					if len(displays) != 3 {
						return fmt.Errorf("it read %d displays", len(displays))
					}
					for _, id := range mine {
						if holder[id]++; holder[id] > 1 {
							shared++
						}
					}
					mu.Unlock()
					_, err := db.Pool().Exec(context.Background(), "SELECT pg_sleep(0.001)") // others come meanwhile
					mu.Lock()
					for _, id := range mine {
						holder[id]--
					}
					return err
				})
				if err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	require.Empty(t, failed)
	require.Zero(t, shared, "two had a display at once")
}
