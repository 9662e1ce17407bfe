package device

import (
	"slices"
	"strings"
)

// VenueType says whether text is a venue type of the OpenOOH venue taxonomy 1.1,
// of any of its three levels.
func VenueType(text string) bool {
	return slices.Contains(venueTypes(), text)
}

// venueTypes are the taxonomy's strings by category: each word of a line goes
// behind what the line begins with.
// https://github.com/openooh/venue-taxonomy, specification 1.1; its
// "health_beauty.gyms.lobby." is here without the full stop.
func venueTypes() []string {
	var all []string
	for line := range strings.SplitSeq(strings.TrimSpace(taxonomy), "\n") {
		parent, children, _ := strings.Cut(line, ":")
		all = append(all, parent)
		for child := range strings.FieldsSeq(children) {
			all = append(all, parent+"."+child)
		}
	}
	return all
}

const taxonomy = `
transit: taxi_rideshare_tv taxi_rideshare_top ferry
transit.airports: arrivals_hall baggage_claim departures_hall food_court gates lounges shopping_area
transit.buses: bus terminal bus_outside
transit.subway: train platform
transit.train_stations: train platform
retail: convenience_store liquor_stores dispensaries pharmacies parking_garages
retail.gas_stations: pump shop
retail.grocery: shop_entrance check_out aisles
retail.malls: concourse food_court spectacular
outdoor: urban_panels bus_shelters
outdoor.billboards: roadside highway spectacular
health_beauty: spas
health_beauty.gyms: lobby equipment
health_beauty.salons: unisex mens womens
point_care: doctor_offices veterinary_offices
education: schools
education.colleges: residences common athletics
office_buildings:
office_buildings.office_buildings: elevator lobby
entertainment: bars casual_dining qsr golf_cart night_club high_end_dining
entertainment.recreational: theme_parks museums_galleries concert_venues
entertainment.movie_theaters: lobby food_court
entertainment.sports: arena club_house
entertainment.hotels: lobby elevator room
government: dmv military_bases postal
financial: banks
residential: apartment
residential.apartment_buildings: lobby elevator
`
