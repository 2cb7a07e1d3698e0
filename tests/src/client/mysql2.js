const login = JSON.parse(process.argv[1]);
const options = {
  host: login.host, port: login.port, user: login.user, password: login.password,
  database: login.schema || undefined, connectTimeout: 20000,
};
if (login.tls) {
  options.ssl = { rejectUnauthorized: false };
  if (login.tls !== 'any') {
    options.ssl.minVersion = options.ssl.maxVersion = 'TLSv' + login.tls;
  }
}
const session = require('mysql2').createConnection(options);
const fail = (error) => {
  console.log(`${error.code}: ${error.message}`);
  console.log(JSON.stringify({
    number: error.errno < 0 ? 0 : error.errno || 0, sqlstate: error.sqlState, message: error.message,
  }));
  process.exit(1);
};
session.on('error', fail);
session.query(login.query, (error, rows) => {
  if (error) return fail(error);
  const found = Object.fromEntries(rows.map((row) => [row.Variable_name, row.Value]));
  console.log(JSON.stringify({ version: found.Ssl_version, cipher: found.Ssl_cipher }));
  session.end();
});
