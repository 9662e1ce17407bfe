package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// move stores entries, all of one transaction in one call: it locks the accounts that
// they touch in one order, and what locks anything else comes before. Entries of
// nothing are left out; entries without an id get one. Errors: order.ErrFunds when a
// wallet would have less than nothing.
func (w work) move(ctx context.Context, now time.Time, entries ...order.Entry) error {
	var (
		accounts query.AddAccountsParams
		p        = query.InsertEntriesParams{CreateTime: now}
		changes  = map[string]int64{}
		units    = map[string]string{} // the currencies of accounts
		source   = ulid.Monotonic(rand.Reader, 0)
	)
	touch := func(a order.Account, currency string, amountMinor int64) string {
		id := a.ID(currency)
		if _, known := units[id]; !known {
			organisationID := ""
			if a.Kind == order.WalletAccount {
				organisationID = a.Of
			}
			accounts.AccountIds, accounts.Kinds = append(accounts.AccountIds, id), append(accounts.Kinds, string(a.Kind))
			accounts.OrganisationIds, accounts.Currencies = append(accounts.OrganisationIds, organisationID), append(accounts.Currencies, currency)
			units[id] = currency
		}
		changes[id] += amountMinor
		return id
	}
	for _, e := range entries {
		if e.Minor == 0 {
			continue
		}
		if e.Minor < 0 || e.Minor > order.MaxAmount {
			return fmt.Errorf("moving %d minor units of %s: an entry has up to %d", e.Minor, e.Currency, int64(order.MaxAmount))
		}
		if e.ID == "" {
			var err error
			if e.ID, err = entryID(now, source); err != nil {
				return err
			}
		}
		p.EntryIds = append(p.EntryIds, e.ID)
		p.FromAccounts = append(p.FromAccounts, touch(e.From, e.Currency, -e.Minor))
		p.ToAccounts = append(p.ToAccounts, touch(e.To, e.Currency, e.Minor))
		p.Currencies = append(p.Currencies, e.Currency)
		p.AmountsMinor = append(p.AmountsMinor, e.Minor)
		p.Kinds = append(p.Kinds, string(e.Kind))
		p.OrderIds = append(p.OrderIds, e.OrderID)
		p.LineIds = append(p.LineIds, e.LineID)
		p.EntryReferences = append(p.EntryReferences, e.Reference)
	}
	if p.EntryIds == nil {
		return nil
	}
	if err := w.later.AddAccounts(ctx, accounts); err != nil {
		return err
	}
	if err := w.changeBalances(ctx, changes, units); err != nil {
		return err
	}
	return w.later.InsertEntries(ctx, p)
}

// changeBalances adds to the balances of those accounts that have one. That none is
// less than nothing is for the database to say. Errors: order.ErrFunds.
func (w work) changeBalances(ctx context.Context, changes map[string]int64, units map[string]string) error {
	locked, err := w.LockAccounts(ctx, slices.Sorted(maps.Keys(changes)))
	if err != nil {
		return err
	}
	var p query.ChangeBalancesParams
	for _, a := range locked {
		p.AccountIds, p.ChangesMinor = append(p.AccountIds, a.AccountID), append(p.ChangesMinor, changes[a.AccountID])
	}
	err = w.ChangeBalances(ctx, p)
	if database.Violated(err) != "ledger_accounts_balance_not_negative" {
		return err
	}
	for _, a := range locked {
		if missing := -(a.BalanceMinor + changes[a.AccountID]); missing > 0 && accountOf(a.AccountID).Kind == order.WalletAccount {
			funds := *order.ErrFunds
			funds.Message = fmt.Sprintf("the wallet has %d minor units of %s less than this costs: top it up", missing, units[a.AccountID])
			return funds.Because(err)
		}
	}
	return err
}

// entryID makes an id of a time; those of one source are in their order.
func entryID(now time.Time, source *ulid.MonotonicEntropy) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), source)
	if err != nil {
		return "", fmt.Errorf("making the id of an entry: %w", err)
	}
	return "ent_" + id.String(), nil
}

// ToppedUp implements order.LedgerStore.
func (s *Store) ToppedUp(ctx context.Context, r order.Request) (came bool, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		first, err := s.q.RepeatedRequest(ctx, query.RepeatedRequestParams{CallerID: r.CallerID, RequestID: r.RequestID, Now: r.Time})
		switch came = err == nil; {
		case none(err):
			return nil
		case err != nil:
			return err
		case !hmac.Equal(first.Fingerprint, r.Fingerprint):
			return order.ErrRequestIDReused
		}
		return nil
	})
	return came && err == nil, err
}

// TopUp implements order.LedgerStore.
func (s *Store) TopUp(ctx context.Context, r order.Request, e order.Entry) (balance order.Money, err error) {
	if e.ID, err = entryID(r.Time, ulid.Monotonic(rand.Reader, 0)); err != nil {
		return order.Money{}, err
	}
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		// The same request waits here. Whether it came before the reference says, also when
		// it was forgotten since; and what was taken is put into the wallet when another
		// request took the id meanwhile.
		if _, err := w.once(ctx, r, e.ID); err != nil && !errors.Is(err, order.ErrRequestIDReused) {
			return err
		}
		stored, err := w.TopUpStored(ctx, e.Reference)
		if err != nil {
			return err
		}
		if !stored {
			if err := w.move(ctx, r.Time, e); err != nil {
				return err
			}
		}
		all, err := balances(ctx, w.Queries, e.To.Of)
		if err != nil {
			return err
		}
		balance = order.Money{Currency: e.Currency}
		for _, b := range all {
			if b.Currency == e.Currency {
				balance = b
			}
		}
		return nil
	})
	return balance, err
}

// Balances implements order.LedgerStore.
func (s *Store) Balances(ctx context.Context, organisationID string) (all []order.Money, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		all, err = balances(ctx, s.q, organisationID)
		return err
	})
	return all, err
}

func balances(ctx context.Context, q *query.Queries, organisationID string) ([]order.Money, error) {
	rows, err := q.Balances(ctx, organisationID)
	if err != nil {
		return nil, err
	}
	all := make([]order.Money, len(rows))
	for i, row := range rows {
		all[i] = order.Money{Minor: row.BalanceMinor, Currency: row.Currency}
	}
	return all, nil
}

// ListWalletEntries implements order.LedgerStore.
func (s *Store) ListWalletEntries(ctx context.Context, organisationID, before string, limit int) ([]order.Entry, error) {
	var rows []query.LedgerEntry
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.WalletEntries(ctx, query.WalletEntriesParams{OrganisationID: organisationID, Before: before, AtMost: int32(limit)})
		return err
	})
	if err != nil {
		return nil, err
	}
	found := make([]order.Entry, len(rows))
	for i, r := range rows {
		found[i] = order.Entry{
			ID: r.EntryID, Kind: order.EntryKind(r.Kind), From: accountOf(r.FromAccount), To: accountOf(r.ToAccount),
			Money:   order.Money{Minor: r.AmountMinor, Currency: r.Currency},
			OrderID: r.OrderID, LineID: r.LineID, Reference: r.Reference, CreateTime: r.CreateTime.UTC(),
		}
	}
	return found, nil
}

// accountOf reads what Account.ID writes.
func accountOf(id string) order.Account {
	kind, of, _ := strings.Cut(id, ":")
	switch kind {
	case "wallet":
		of, _, _ = strings.Cut(of, ":")
		return order.Wallet(of)
	case "order":
		return order.Kept(of)
	case "platform":
		return order.Platform()
	default:
		return order.External()
	}
}
