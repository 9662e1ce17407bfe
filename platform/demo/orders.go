package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	// bookedDays is for how many days the advertisers book.
	bookedDays = 28
	// topUp is what they bring when they have too little, in minor units.
	topUp = 100_000_000
	// forSaleWithin is how soon a display can be booked that was made just now.
	forSaleWithin = 30 * time.Second
	forSalePause  = 100 * time.Millisecond
)

// advertiser is somebody who books air time, and what for.
type advertiser struct {
	member
	orders []order
}

// order is one booking: a text on displays, which have prices in one currency.
type order struct {
	title    string
	text     *orderv1.TextContent
	displays []string // names
	slots    int32    // of each loop
	dayparts []*orderv1.Daypart
}

// advertisers are the demo's. Who changes a title here gets another order beside the
// one that has it.
func advertisers() []advertiser {
	var mornings []*orderv1.Daypart
	const friday, six, ten = 5, 6 * 60, 10 * 60
	for weekday := int32(1); weekday <= friday; weekday++ {
		mornings = append(mornings, &orderv1.Daypart{Weekday: weekday, StartMinute: six, EndMinute: ten})
	}
	text := func(words, color, background string) *orderv1.TextContent {
		return &orderv1.TextContent{Text: words, Color: color, Background: background, SizePercent: 12, Bold: true}
	}
	shoes := text("BLUE LINE SHOES\nFor those who walk", "#FFFFFF", "#123C8C")
	return []advertiser{
		{
			member: member{"ads", "ads@example.com", "Northern Roast", accountv1.OrganisationKind_ORGANISATION_KIND_ADVERTISER},
			orders: []order{
				{
					title: "Coffee for travellers", slots: 1, text: text("NORTHERN ROAST\nCoffee, around the corner", "#FFE8C0", "#3A2418"),
					displays: []string{"Munich Airport, gate G7", "Munich, Marienplatz platform 2", "Berlin Central Station, hall", "Lisbon, Cais do Sodré ferry"},
				},
				{
					title: "Coffee before work", slots: 2, text: text("NORTHERN ROAST\nGood morning", "#3A2418", "#FFE8C0"), dayparts: mornings,
					displays: []string{"Hamburg, Jungfernstieg shelter", "Vienna, Stephansplatz platform 1"},
				},
			},
		},
		{
			member: member{"ads2", "ads2@example.com", "Blue Line Shoes", accountv1.OrganisationKind_ORGANISATION_KIND_ADVERTISER},
			orders: []order{
				{title: "Shoes for Berlin and Hamburg", slots: 1, text: shoes, displays: []string{"Berlin, Alexanderplatz", "Hamburg, Jungfernstieg shelter"}},
				{title: "Shoes for New York", slots: 1, text: shoes, displays: []string{"New York, Bryant Park panel"}},
				{title: "Shoes for Tokyo", slots: 2, text: shoes, displays: []string{"Tokyo, Shibuya crossing"}},
			},
		},
	}
}

// place is a display that can be booked.
type place struct {
	deviceID string
	zone     *time.Location
}

// places are the displays by name.
func places(all []owner, made []Owner) (map[string]place, error) {
	found := make(map[string]place)
	for i, o := range all {
		for n, d := range o.displays {
			zone, err := time.LoadLocation(d.zone)
			if err != nil {
				return nil, fmt.Errorf("the time zone of %s: %w", d.name, err)
			}
			found[d.name] = place{deviceID: made[i].Displays[n].DeviceID, zone: zone}
		}
	}
	return found, nil
}

// advertise makes the advertisers and what they book, and has the owners of the
// displays approve it.
func (m *maker) advertise(ctx context.Context, all []owner, owners []Owner) ([]Advertiser, error) {
	where, err := places(all, owners)
	if err != nil {
		return nil, err
	}
	wanted := advertisers()
	made := make([]Advertiser, len(wanted))
	group, making := errgroup.WithContext(ctx)
	for i, a := range wanted {
		group.Go(func() error {
			var err error
			if made[i], err = m.advertiser(making, a, where); err != nil {
				return fmt.Errorf("making the orders of %s: %w", a.account, err)
			}
			return nil
		})
	}
	return made, group.Wait()
}

func (m *maker) advertiser(ctx context.Context, a advertiser, where map[string]place) (Advertiser, error) {
	account, token, err := m.logIn(ctx, a.member)
	if err != nil {
		return Advertiser{}, err
	}
	ctx = bearer(ctx, token)
	made := Advertiser{Account: account}
	creatives, err := m.creatives(ctx, account.OrganisationID)
	if err != nil {
		return Advertiser{}, err
	}
	have, err := m.ordersOf(ctx, account.OrganisationID)
	if err != nil {
		return Advertiser{}, err
	}
	for _, o := range a.orders {
		creative := creatives[o.title]
		if creative == "" {
			written, err := m.texts.CreateCreative(ctx, &orderv1.CreateCreativeRequest{
				OrganisationId: account.OrganisationID, RequestId: requestID(), Title: o.title,
				Content: &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: o.text}},
			})
			if err != nil {
				return Advertiser{}, fmt.Errorf("writing the text of %s: %w", o.title, err)
			}
			m.change()
			creative = written.GetCreative().GetCreativeId()
		}
		id, err := m.order(ctx, account.OrganisationID, o, have[o.title], creative, where)
		if err != nil {
			return Advertiser{}, fmt.Errorf("%s: %w", o.title, err)
		}
		if id != "" {
			made.Orders = append(made.Orders, Order{OrderID: id, Title: o.title})
		}
		if err := m.approve(ctx, account.OrganisationID, creative); err != nil {
			return Advertiser{}, fmt.Errorf("%s: %w", o.title, err)
		}
	}
	return made, nil
}

// creatives are the ids of an organisation's, by title: the oldest of each.
func (m *maker) creatives(ctx context.Context, organisation string) (map[string]string, error) {
	const pageSize = 200
	found := make(map[string]string)
	request := &orderv1.ListCreativesRequest{OrganisationId: organisation, PageSize: pageSize}
	for {
		page, err := m.texts.ListCreatives(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("listing the texts: %w", err)
		}
		for _, c := range page.GetCreatives() {
			found[c.GetTitle()] = c.GetCreativeId()
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return found, nil
		}
	}
}

// ordersOf are an organisation's, by title, the newest first.
func (m *maker) ordersOf(ctx context.Context, organisation string) (map[string][]*orderv1.Order, error) {
	const pageSize = 200
	found := make(map[string][]*orderv1.Order)
	request := &orderv1.ListOrdersRequest{OrganisationId: organisation, PageSize: pageSize}
	for {
		page, err := m.orders.ListOrders(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("listing the orders: %w", err)
		}
		for _, o := range page.GetOrders() {
			found[o.GetTitle()] = append(found[o.GetTitle()], o)
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return found, nil
		}
	}
}

// order books one unless it is there: booked and not over, or cancelled by somebody.
// It returns its id, empty when nothing of it is free.
func (m *maker) order(ctx context.Context, organisation string, o order, have []*orderv1.Order, creative string, where map[string]place) (string, error) {
	for _, before := range have {
		switch before.GetState() {
		case orderv1.OrderState_ORDER_STATE_CANCELLED:
			return before.GetOrderId(), nil
		case orderv1.OrderState_ORDER_STATE_BOOKED:
			over, err := m.over(ctx, organisation, before.GetOrderId())
			if err != nil || !over {
				return before.GetOrderId(), err
			}
		case orderv1.OrderState_ORDER_STATE_HELD:
			// Whoever held it got no further.
			err := m.book(ctx, organisation, before)
			if status.Code(err) != codes.FailedPrecondition {
				return before.GetOrderId(), err
			}
		}
	}
	lines, err := m.free(ctx, organisation, o, creative, where)
	if err != nil || len(lines) == 0 {
		return "", err
	}
	held, err := m.orders.HoldOrder(ctx, &orderv1.HoldOrderRequest{OrganisationId: organisation, RequestId: requestID(), Title: o.title, Lines: lines})
	if err != nil {
		return "", fmt.Errorf("holding it: %w", err)
	}
	return held.GetOrder().GetOrderId(), m.book(ctx, organisation, held.GetOrder())
}

// over says whether all lines of an order have ended.
func (m *maker) over(ctx context.Context, organisation, id string) (bool, error) {
	found, err := m.orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrganisationId: organisation, OrderId: id})
	if err != nil {
		return false, fmt.Errorf("reading it: %w", err)
	}
	now := time.Now()
	return !slices.ContainsFunc(found.GetOrder().GetLines(), func(l *orderv1.Line) bool { return l.GetEndTime().AsTime().After(now) }), nil
}

// free are the lines of an order that can be booked. It waits for displays that were
// made just now, and leaves out those that are full, or that no player can play on.
func (m *maker) free(ctx context.Context, organisation string, o order, creative string, where map[string]place) ([]*orderv1.LineRequest, error) {
	waiting, cancel := context.WithTimeout(ctx, forSaleWithin)
	defer cancel()
	var lines []*orderv1.LineRequest
	for _, name := range o.displays {
		at := where[name]
		today := time.Now().In(at.zone)
		flight := &orderv1.Flight{StartDate: today.Format(time.DateOnly), EndDate: today.AddDate(0, 0, bookedDays-1).Format(time.DateOnly)}
		for {
			found, err := m.orders.SearchAvailability(ctx, &orderv1.SearchAvailabilityRequest{
				OrganisationId: organisation, Flight: flight, Dayparts: o.dayparts, Slots: o.slots, DeviceIds: []string{at.deviceID}, IncludeFull: true,
			})
			if err != nil {
				return nil, fmt.Errorf("searching %s: %w", name, err)
			}
			if displays := found.GetDisplays(); len(displays) > 0 {
				if displays[0].GetFreeSlots() >= o.slots {
					lines = append(lines, &orderv1.LineRequest{DeviceId: at.deviceID, Flight: flight, Dayparts: o.dayparts, Slots: o.slots, CreativeId: creative})
				}
				break
			}
			timer := time.NewTimer(forSalePause)
			select {
			case <-timer.C:
				continue
			case <-waiting.Done():
				timer.Stop()
			}
			break
		}
	}
	return lines, ctx.Err()
}

// book pays for an order, with money that is brought when there is too little.
func (m *maker) book(ctx context.Context, organisation string, o *orderv1.Order) error {
	wallet, err := m.wallets.GetWallet(ctx, &orderv1.GetWalletRequest{OrganisationId: organisation})
	if err != nil {
		return fmt.Errorf("reading the wallet: %w", err)
	}
	price := o.GetPrice()
	if !slices.ContainsFunc(wallet.GetBalances(), func(b *orderv1.Money) bool {
		return b.GetCurrency() == price.GetCurrency() && b.GetAmountMinor() >= price.GetAmountMinor()
	}) {
		if _, err := m.wallets.TopUpWallet(ctx, &orderv1.TopUpWalletRequest{
			OrganisationId: organisation, RequestId: requestID(), PaymentMethod: "demo",
			Amount: &orderv1.Money{AmountMinor: max(topUp, price.GetAmountMinor()), Currency: price.GetCurrency()},
		}); err != nil {
			return fmt.Errorf("topping the wallet up: %w", err)
		}
	}
	if _, err := m.orders.BookOrder(ctx, &orderv1.BookOrderRequest{OrganisationId: organisation, OrderId: o.GetOrderId(), RequestId: requestID()}); err != nil {
		return fmt.Errorf("booking it: %w", err)
	}
	m.change()
	return nil
}

var errNoVersion = errors.New("the text has no version")

// approve has the owners of the displays approve what was written here, unless they
// have decided. What somebody wrote since is theirs to decide.
func (m *maker) approve(ctx context.Context, organisation, creative string) error {
	found, err := m.texts.GetCreative(ctx, &orderv1.GetCreativeRequest{OrganisationId: organisation, CreativeId: creative})
	if err != nil {
		return fmt.Errorf("reading the text: %w", err)
	}
	versions := found.GetCreative().GetVersions()
	if len(versions) == 0 {
		return errNoVersion
	}
	for _, a := range versions[len(versions)-1].GetApprovals() {
		if a.GetState() != orderv1.ApprovalState_APPROVAL_STATE_PENDING {
			continue
		}
		m.mu.Lock()
		token := m.tokens[a.GetOwnerOrganisationId()]
		m.mu.Unlock()
		if token == "" {
			continue // another owner's display
		}
		if _, err := m.texts.DecideApproval(bearer(ctx, token), &orderv1.DecideApprovalRequest{
			OrganisationId: a.GetOwnerOrganisationId(), CreativeId: creative, Version: a.GetVersion(), Approve: true,
		}); err != nil {
			return fmt.Errorf("approving the text: %w", err)
		}
		m.change()
	}
	return nil
}
