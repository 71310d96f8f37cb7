import dayjs from "dayjs";

/** The days from one date to another; negative if the other is earlier. */
export function daysBetween(from: string, to: string): number {
  return dayjs(to).diff(dayjs(from), "day");
}
