package order_test

import (
	"encoding/base64"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/services/order"
)

// approves decides for an owner.
func (g *gallery) approves(t *testing.T, ownerID string, c order.Creative, version int) order.Approval {
	t.Helper()
	a, err := g.DecideApproval(t.Context(), ownerID, c.ID, version, true, "")
	require.NoError(t, err)
	return a
}

func (g *gallery) rejects(t *testing.T, ownerID string, c order.Creative, version int, reason string) order.Approval {
	t.Helper()
	a, err := g.DecideApproval(t.Context(), ownerID, c.ID, version, false, reason)
	require.NoError(t, err)
	return a
}

// shownSum is the SHA-256 of what a display shows, or empty.
func (g *gallery) shownSum(t *testing.T, deviceID string) string {
	t.Helper()
	showing := g.shown(t)[deviceID].Showing
	if showing == nil {
		return ""
	}
	return showing.SHA256
}

// TestApproval goes through the life of a creative on a display of somebody else.
func TestApproval(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_one")
	g.put(t, "dev_two")
	g.put(t, "dev_third", "organisation_id = '"+another+"'")
	g.fund(t, buyer, eur(10*priceOfADay))
	one := g.made(t, buyer, says("one"))
	first := slotOn("dev_one", 10, 10)
	first.CreativeID = one.ID
	o := g.booked(t, g.held(t, buyer, first, slotOn("dev_two", 10, 10), slotOn("dev_third", 10, 10)))
	asked := g.now().UTC()

	pending, next, err := g.ListApprovals(t.Context(), owner, order.Pending, paging.Page{})
	require.NoError(t, err)
	require.Empty(t, next)
	require.Len(t, pending, 1)
	require.Equal(t, order.Approval{
		CreativeID: one.ID, Version: 1, OwnerID: owner, State: order.Pending, CreateTime: asked, Creative: &one,
	}, pending[0])
	none, _, err := g.ListApprovals(t.Context(), another, "", paging.Page{})
	require.NoError(t, err)
	require.Empty(t, none, "it is not on their display")
	require.Empty(t, g.shownSum(t, "dev_one"))

	g.clock.Add(int64(time.Minute))
	approved := g.approves(t, owner, one, 1)
	require.Equal(t, order.Approval{
		CreativeID: one.ID, Version: 1, OwnerID: owner, State: order.Approved, CreateTime: asked, DecideTime: g.now().UTC(), Creative: &one,
	}, approved)
	require.Equal(t, one.Newest().SHA256, g.shownSum(t, "dev_one"))
	require.Equal(t, 1, g.find(t, o).Lines[0].ShownVersion)
	g.clock.Add(int64(time.Minute))
	require.Equal(t, approved, g.approves(t, owner, one, 1), "the same again changes nothing")

	// An edit is asked for, and the old version shown until it is approved.
	two := g.edited(t, one, says("two"))
	require.Equal(t, one.Newest().SHA256, g.shownSum(t, "dev_one"))
	pending, _, err = g.ListApprovals(t.Context(), owner, order.Pending, paging.Page{})
	require.NoError(t, err)
	require.Len(t, pending, 1)
	require.Equal(t, 2, pending[0].Version)
	require.Equal(t, &two, pending[0].Creative)
	rejected := g.rejects(t, owner, two, 2, " too loud ")
	require.Equal(t, [2]string{"REJECTED", "too loud"}, [2]string{string(rejected.State), rejected.Reason})
	require.Equal(t, one.Newest().SHA256, g.shownSum(t, "dev_one"))
	three := g.edited(t, two, says("three"))
	g.approves(t, owner, three, 3)
	require.Equal(t, three.Newest().SHA256, g.shownSum(t, "dev_one"))
	require.Equal(t, 3, g.find(t, o).Lines[0].ShownVersion)

	// A change of mind takes it off at once, for what was approved before.
	was := g.shown(t)["dev_one"].Showing.ID
	g.rejects(t, owner, three, 3, "changed my mind")
	require.Equal(t, one.Newest().SHA256, g.shownSum(t, "dev_one"))
	require.Contains(t, g.shown(t)["dev_one"].TakenDown, was)
	events := get[int](t, g.market, "SELECT count(*) FROM outbox")
	g.rejects(t, owner, three, 3, "another reason")
	require.Equal(t, events, get[int](t, g.market, "SELECT count(*) FROM outbox"), "displays do not hear of reasons")
	g.rejects(t, owner, one, 1, "nothing of this")
	require.Empty(t, g.shownSum(t, "dev_one"))
	g.approves(t, owner, three, 3)
	require.Equal(t, three.Newest().SHA256, g.shownSum(t, "dev_one"))

	found, err := g.FindCreative(t.Context(), buyer, one.ID)
	require.NoError(t, err)
	var said []string
	for _, v := range found.Versions {
		for _, a := range v.Approvals {
			require.Nil(t, a.Creative)
			said = append(said, fmt.Sprint(v.Number, a.Version, a.State, a.Reason, a.OwnerID == owner))
		}
	}
	require.Equal(t, []string{fmt.Sprint(3, 3, "APPROVED", "", true), fmt.Sprint(2, 2, "REJECTED", "too loud", true), fmt.Sprint(1, 1, "REJECTED", "nothing of this", true)}, said)

	// Each owner decides for their own displays.
	g.show(t, o, one)
	require.Equal(t, three.Newest().SHA256, g.shownSum(t, "dev_two"), "it is the owner's who approved it")
	require.Empty(t, g.shownSum(t, "dev_third"))
	g.approves(t, another, three, 3)
	require.Equal(t, three.Newest().SHA256, g.shownSum(t, "dev_third"))
	g.rejects(t, owner, three, 3, "no")
	require.Empty(t, g.shownSum(t, "dev_one"))
	require.Empty(t, g.shownSum(t, "dev_two"))
	require.Equal(t, three.Newest().SHA256, g.shownSum(t, "dev_third"))

	t.Run("Many", func(t *testing.T) {
		g.exec(t, `INSERT INTO approvals (creative_id, version, owner_id, state, reason, create_time)
			SELECT $1, v, 'org_' || n, 'PENDING', '', now() FROM generate_series(1, 3) AS v, generate_series(1, $2::integer) AS n`, one.ID, order.MaxShownApprovals/2)
		found, err := g.FindCreative(t.Context(), buyer, one.ID)
		require.NoError(t, err)
		require.Len(t, found.Versions[0].Approvals, order.MaxShownApprovals/2+2)
		require.Len(t, found.Versions[1].Approvals, order.MaxShownApprovals/2-2, "no more in all")
		require.Empty(t, found.Versions[2].Approvals)
	})
	t.Run("ErrApproval", func(t *testing.T) {
		for reason, approve := range map[string]bool{"": false, "  ": false, "why": true, "a\x00b": false, "a\u202eb": false} {
			_, err := g.DecideApproval(t.Context(), owner, one.ID, 1, approve, reason)
			refused(t, err, order.ErrApproval, "reason")
		}
	})
	t.Run("ErrApprovalNotFound", func(t *testing.T) {
		for _, c := range []struct {
			owner, creative string
			version         int
		}{{another, one.ID, 1}, {buyer, one.ID, 1}, {owner, one.ID, 4}, {owner, "crv_01ARZ3NDEKTSV4RRFFQ69G5FAV", 1}} {
			_, err := g.DecideApproval(t.Context(), c.owner, c.creative, c.version, true, "")
			refused(t, err, order.ErrApprovalNotFound, "")
		}
	})
}

// On its own displays an organisation needs nobody's approval, and can still take it
// back.
func TestOwnDisplays(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_own")
	g.fund(t, owner, eur(priceOfADay))
	c := g.made(t, owner, says("one"))
	o := g.show(t, g.booked(t, g.held(t, owner, slotOn("dev_own", 10, 10))), c)
	require.Equal(t, 1, o.Lines[0].ShownVersion)
	require.Equal(t, c.Newest().SHA256, g.shownSum(t, "dev_own"))
	c = g.edited(t, c, says("two"))
	require.Equal(t, c.Newest().SHA256, g.shownSum(t, "dev_own"), "an edit is shown at once")
	pending, _, err := g.ListApprovals(t.Context(), owner, order.Pending, paging.Page{})
	require.NoError(t, err)
	require.Empty(t, pending)
	g.rejects(t, owner, c, 2, "a mistake")
	require.NotEqual(t, c.Newest().SHA256, g.shownSum(t, "dev_own"))
	require.NotEmpty(t, g.shownSum(t, "dev_own"))
}

// Nobody is asked for what is not booked any more, or over.
func TestNobodyIsAsked(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_one")
	g.fund(t, buyer, eur(10*priceOfADay))
	c := g.made(t, buyer, says("one"))
	cancelled := g.show(t, g.booked(t, g.held(t, buyer, slotOn("dev_one", 10, 10))), c)
	_, err := g.cancel(t, cancelled)
	require.NoError(t, err)
	over := g.show(t, g.booked(t, g.held(t, buyer, slotOn("dev_one", 3, 3))), c)
	require.Equal(t, 1, get[int](t, g.market, "SELECT count(*) FROM approvals"))
	g.set(over.EndTime.Add(time.Second))
	g.edited(t, c, says("two"))
	require.Equal(t, 1, get[int](t, g.market, "SELECT count(*) FROM approvals"))
}

func TestListApprovals(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_one")
	g.fund(t, buyer, eur(10*priceOfADay))
	line := g.booked(t, g.held(t, buyer, slotOn("dev_one", 10, 10)))
	type asked struct {
		creative string
		version  int
	}
	var all, pending []asked
	for n := range 5 {
		c := g.made(t, buyer, says(fmt.Sprint("creative ", n)))
		g.show(t, line, c)
		all = append(all, asked{c.ID, 1})
		if n%2 == 0 {
			g.approves(t, owner, c, 1)
		} else {
			pending = append(pending, asked{c.ID, 1})
		}
	}
	list := func(state order.ApprovalState, size int) (got []asked) {
		page := paging.Page{Size: size}
		for {
			found, next, err := g.ListApprovals(t.Context(), owner, state, page)
			require.NoError(t, err)
			for _, a := range found {
				got = append(got, asked{a.CreativeID, a.Version})
			}
			if page.Token = next; next == "" {
				return got
			}
			require.Len(t, found, size)
		}
	}
	for size := 1; size <= 6; size++ {
		require.Equal(t, all, list("", size))
		require.Equal(t, pending, list(order.Pending, size))
		require.Len(t, list(order.Approved, size), 3)
		require.Empty(t, list(order.Rejected, size))
	}
	t.Run("ErrPageTokenInvalid", func(t *testing.T) {
		_, token, err := g.ListApprovals(t.Context(), owner, "", paging.Page{Size: 1})
		require.NoError(t, err)
		_, _, err = g.ListApprovals(t.Context(), another, "", paging.Page{Token: token})
		refused(t, err, paging.ErrTokenInvalid, "page_token")
		for _, position := range []string{"x", "1,crv", "1,crv,x", "x,crv,1", "1,crv,1,1", "1,crv,99999999999", "9223372036854775807,crv,1", "-9223372036854775808,crv,1"} {
			forged := base64.RawURLEncoding.EncodeToString([]byte("approvals of " + owner + ":" + position))
			_, _, err := g.ListApprovals(t.Context(), owner, "", paging.Page{Token: forged})
			refused(t, err, paging.ErrTokenInvalid, "page_token")
		}
		early := base64.RawURLEncoding.EncodeToString([]byte("approvals of " + owner + ":-9007199254740991,crv,1"))
		found, _, err := g.ListApprovals(t.Context(), owner, "", paging.Page{Token: early})
		require.NoError(t, err)
		require.Len(t, found, 5)
	})
}

// TestBookingMeetsEdit books lines while their creative is edited: whichever is first,
// the owner is asked for the newest version.
func TestBookingMeetsEdit(t *testing.T) {
	g := newGallery(t)
	g.put(t, "dev_one", "price_minor = 0")
	for n := range 25 {
		c := g.made(t, buyer, says(fmt.Sprint("before ", n)))
		l := slotOn("dev_one", 10, 10)
		l.CreativeID = c.ID
		o := g.held(t, buyer, l)
		var all sync.WaitGroup
		var booking, editing error
		all.Go(func() { _, booking = g.BookOrder(t.Context(), ada, fmt.Sprint("request-book-", n), buyer, o.ID) })
		all.Go(func() {
			_, editing = g.UpdateCreative(t.Context(), buyer, c.ID, c.Title, says(fmt.Sprint("after ", n)), 0)
		})
		all.Wait()
		require.NoError(t, booking)
		require.NoError(t, editing)
		require.Equal(t, 1, get[int](t, g.market, "SELECT count(*) FROM approvals WHERE creative_id = $1 AND version = 2", c.ID))
		_, err := g.cancel(t, o)
		require.NoError(t, err)
	}
}

// TestDecisionsMeet has owners decide, the advertiser edit, and lines change what they
// show, all at once: in the end each line shows what it is to show, and nothing hung.
func TestDecisionsMeet(t *testing.T) {
	g := newGallery(t)
	const displays = 6
	var lines []order.LineRequest
	for n := range displays {
		id := fmt.Sprint("dev_", n)
		g.put(t, id, "price_minor = 0")
		lines = append(lines, slotOn(id, 10, 10))
	}
	g.put(t, "dev_0", "price_minor = 0", "organisation_id = '"+another+"'")
	creatives := []order.Creative{g.made(t, buyer, says("one")), g.made(t, buyer, says("two"))}
	orders := make([]order.Order, 3)
	for i := range orders {
		orders[i] = g.show(t, g.booked(t, g.held(t, buyer, lines...)), creatives[i%2])
	}
	var all sync.WaitGroup
	errs := make(chan error, 1000)
	for round := range 10 {
		for i, c := range creatives {
			all.Go(func() {
				_, err := g.UpdateCreative(t.Context(), buyer, c.ID, c.Title, says(fmt.Sprint(i, " in round ", round)), 0)
				errs <- err
			})
			for _, by := range []string{owner, another} {
				all.Go(func() {
					_, err := g.DecideApproval(t.Context(), by, c.ID, 1, round%2 == 0, map[bool]string{false: "no"}[round%2 == 0])
					errs <- err
				})
			}
		}
		for i, o := range orders {
			all.Go(func() {
				_, err := g.SetLineCreative(t.Context(), buyer, o.ID, nil, creatives[(i+round)%2].ID)
				errs <- err
			})
		}
		all.Wait()
	}
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	for _, by := range []string{owner, another} {
		for _, c := range creatives {
			found, err := g.FindCreative(t.Context(), buyer, c.ID)
			require.NoError(t, err)
			g.approves(t, by, c, found.Newest().Number)
		}
	}
	require.Len(t, g.shown(t), displays)
	for _, o := range orders {
		for _, l := range g.find(t, o).Lines {
			found, err := g.FindCreative(t.Context(), buyer, l.CreativeID)
			require.NoError(t, err)
			require.Equal(t, found.Newest().Number, l.ShownVersion)
		}
	}
}
