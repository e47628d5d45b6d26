// node send.js PORT SENDER COUNT POOL: what an application does with Nodemailer; one line of reply a message.
"use strict";
const nodemailer = require("nodemailer");
const [port, sender, count, pool] = [process.argv[2], process.argv[3], Number(process.argv[4]), process.argv[5] === "pool"];
const transport = nodemailer.createTransport({ host: "127.0.0.1", port: Number(port), pool, maxConnections: 3 });

async function main() {
  const all = [...Array(count).keys()].map((n) =>
    transport.sendMail({
      from: `"Bücherei" <${sender}>`,
      to: ["Zoë <zoe@example.com>", "bob@example.com"],
      bcc: "hidden@example.com",
      subject: `Grüße Nr. ${n} — дом 🏠`,
      text: `.\n..two dots\nKöln liegt am Rhein\n${"x".repeat(900)}\n\n\n`,
      html: "<p>Köln liegt am <b>Rhein</b></p>",
      attachments: [
        { filename: "größe.bin", content: Buffer.from([...Array(4096).keys()].map((i) => i & 255)) },
        { filename: "notes.txt", content: ".\n.\n", encoding: "utf-8" },
      ],
    }),
  );
  for (const info of await Promise.all(all)) console.log(info.response);
  transport.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
