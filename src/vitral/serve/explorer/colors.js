// Numbers as colors: viridis, which color-blind readers can tell apart and which turns gray in order.

const HEX =
  "44015444025544035745055845065a45085b46095c460b5e460c5f460e61470f6247116347126547146647156747166947186a48196b" +
  "481a6c481c6e481d6f481e70482071482172482273482374472575472676472777472878472a79472b7a472c7b462d7c462f7c46307d" +
  "46317e45327f45347f453580453681443781443982433a83433b83433c84423d84423e854240854141864142864043874044873f4587" +
  "3f47883e48883e49893d4a893d4b893d4c893c4d8a3c4e8a3b508a3b518a3a528b3a538b39548b39558b38568b38578c37588c37598c" +
  "365a8c365b8c355c8c355d8c345e8d345f8d33608d33618d32628d32638d31648d31658d31668d30678d30688d2f698d2f6a8d2e6b8e" +
  "2e6c8e2e6d8e2d6e8e2d6f8e2c708e2c718e2c728e2b738e2b748e2a758e2a768e2a778e29788e29798e287a8e287a8e287b8e277c8e" +
  "277d8e277e8e267f8e26808e26818e25828e25838d24848d24858d24868d23878d23888d23898d22898d228a8d228b8d218c8d218d8c" +
  "218e8c208f8c20908c20918c1f928c1f938b1f948b1f958b1f968b1e978a1e988a1e998a1e998a1e9a891e9b891e9c891e9d881e9e88" +
  "1e9f881ea0871fa1871fa2861fa38620a48520a58521a68521a78422a78423a88323a98224aa8225ab8126ac8127ad8028ae7f29af7f" +
  "2ab07e2bb17d2cb17d2eb27c2fb37b30b47a32b57a33b67935b77836b87738b97639b9763bba753dbb743ebc7340bd7242be7144be70" +
  "45bf6f47c06e49c16d4bc26c4dc26b4fc36951c46853c56755c66657c66559c7645bc8625ec96160c96062ca5f64cb5d67cc5c69cc5b" +
  "6bcd596dce5870ce5672cf5574d05477d05279d1517cd24f7ed24e81d34c83d34b86d44988d5478bd5468dd64490d64392d74195d73f" +
  "97d83e9ad83c9dd93a9fd938a2da37a5da35a7db33aadb32addc30afdc2eb2dd2cb5dd2bb7dd29bade27bdde26bfdf24c2df22c5df21" +
  "c7e01fcae01ecde01dcfe11cd2e11bd4e11ad7e219dae218dce218dfe318e1e318e4e318e7e419e9e419ece41aeee51bf1e51cf3e51e" +
  "f6e61ff8e621fae622fde724";

const TABLE = Uint8Array.from(HEX.match(/../g), (pair) => parseInt(pair, 16));

/** Red, green, blue and alpha of a value between low and high; nothing for what is no number. */
export function color(value, low, high) {
  if (Number.isNaN(value)) return [0, 0, 0, 0];
  const share = high > low ? (value - low) / (high - low) : 0;
  const place = 3 * Math.min(255, Math.max(0, Math.floor(share * 256)));
  return [TABLE[place], TABLE[place + 1], TABLE[place + 2], 255];
}

/** One pixel a value, row by row, into a picture. */
export function heat(values, rows, columns, low, high) {
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) pixels.data.set(color(values[i], low, high), 4 * i);
  return pixels;
}

/** A color for each number, far from that of the next one; light enough for dark lines. */
export function paint(number) {
  return `hsl(${(number * 137.508) % 360} 70% ${62 - 12 * (number % 3)}% / 0.72)`;
}
