// SPDX-License-Identifier: MPL-2.0

//go:build race

package dingtalk

// simulationDays is how long the simulation runs where the race detector makes everything some ten times slower.
const simulationDays = 3
