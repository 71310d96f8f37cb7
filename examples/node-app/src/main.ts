#!/usr/bin/env node
import { daysBetween } from "./days.js";

const [from, to] = process.argv.slice(2);
if (from === undefined || to === undefined) {
  console.error("usage: days-between FROM TO");
  process.exit(2);
}
console.log(`${daysBetween(from, to)} days`);
